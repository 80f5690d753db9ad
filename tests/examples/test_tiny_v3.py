"""The sample checkpoint keeps its promises: its shape, its files, its figures."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, DeepseekV3ForCausalLM

FOLDER = Path(__file__).parents[2] / "examples" / "tiny-v3"
MOST_BYTES = 16 * 2**20
WINDOW = 512
"""Tokens that metrics.json measured at a time."""
BPB_TOLERANCE = 0.05
"""Bits per byte that kernels of another machine may move the figure."""


def read_json(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics() -> dict:
    return read_json("metrics.json")


@pytest.fixture(scope="module")
def model() -> DeepseekV3ForCausalLM:
    return DeepseekV3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(FOLDER)


def tensors() -> Iterator[tuple[str, str, Tensor]]:
    """Every (shard file, name, tensor) of the folder."""
    for path in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  a safe_open is no mapping
                yield path.name, name, shard.get_tensor(name)


def test_the_folder_is_at_most_sixteen_mebibytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES


def test_the_config_is_a_release_in_small() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (
        config["n_routed_experts"],
        config["n_group"],
        config["topk_group"],
        config["num_experts_per_tok"],
    ) == (16, 4, 2, 4)
    assert (config["scoring_func"], config["topk_method"], config["norm_topk_prob"]) == (
        "sigmoid",
        "noaux_tc",
        True,
    )
    assert (config["first_k_dense_replace"], config["num_hidden_layers"], config["n_shared_experts"]) == (
        1,
        4,
        2,
    )
    assert (config["rope_scaling"]["type"], config["rope_scaling"]["factor"]) == ("yarn", 4)


def test_transformers_reads_the_releases_names_for_rope_and_dtype() -> None:
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.dtype == torch.bfloat16
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["rope_theta"] == 10000
    assert config.rope_parameters["original_max_position_embeddings"] * 4 == config.max_position_embeddings


def test_the_index_names_every_tensor_once_and_where_it_lies() -> None:
    index = read_json("model.safetensors.index.json")
    found = [(name, shard) for shard, name, _ in tensors()]
    assert dict(found) == index["weight_map"]
    assert len(found) == len(index["weight_map"])
    assert len(set(index["weight_map"].values())) == 2


def test_the_index_total_is_the_size_of_all_tensors() -> None:
    total = sum(tensor.numel() * tensor.element_size() for _, _, tensor in tensors())
    assert read_json("model.safetensors.index.json")["metadata"]["total_size"] == total


def test_weights_are_bfloat16_and_only_router_biases_float32() -> None:
    wide = {name for _, name, tensor in tensors() if tensor.dtype != torch.bfloat16}
    assert wide == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)}
    assert {tensor.dtype for _, name, tensor in tensors() if name in wide} == {torch.float32}


def test_every_expert_has_its_own_three_matrices() -> None:
    shapes = {name: tuple(tensor.shape) for _, name, tensor in tensors()}
    for layer in (1, 2, 3):
        for expert in range(16):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            assert shapes[f"{prefix}.gate_proj.weight"] == shapes[f"{prefix}.up_proj.weight"] == (128, 256)
            assert shapes[f"{prefix}.down_proj.weight"] == (256, 128)


def test_router_biases_were_learned() -> None:
    biases = [tensor for _, name, tensor in tensors() if name.endswith("e_score_correction_bias")]
    assert all(bias.std() > 0.01 for bias in biases)


def test_the_tokenizer_has_as_many_entries_as_the_config(tokenizer: AutoTokenizer) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == read_json("config.json")["vocab_size"] == 2048
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)


def test_the_tokenizer_puts_the_begin_mark_in_front(tokenizer: AutoTokenizer) -> None:
    assert tokenizer("deep").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("name", ["heldout.txt", "prompts.txt", "prompts-heldout.txt"])
def test_decoding_gives_back_the_text_that_was_encoded(tokenizer: AutoTokenizer, name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    backend = tokenizer.backend_tokenizer
    assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text


def test_any_characters_at_all_survive_the_tokenizer(tokenizer: AutoTokenizer) -> None:
    text = "\t  Ωμέγα \u2028 深度求索 🙂\r\n\x00 end"
    backend = tokenizer.backend_tokenizer
    assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text


def test_there_are_prompts_enough_and_none_of_the_training_kind_is_held_out() -> None:
    training = (FOLDER / "prompts.txt").read_text(encoding="utf-8").splitlines()
    heldout = (FOLDER / "prompts-heldout.txt").read_text(encoding="utf-8").splitlines()
    assert len(training) >= 128
    assert len(heldout) >= 32
    assert set(training).isdisjoint(heldout)


def first_documents(tokenizer: AutoTokenizer, count: int) -> tuple[Tensor, int]:
    """The first held-out documents as ``bos text eos bos text eos …``, and their length as a file, in bytes."""
    texts = (FOLDER / "heldout.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n%\n")[:count]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    stream = [token for one in encoded for token in (0, *one.ids, 1)]
    return torch.tensor(stream), len("\n%\n".join(texts).encode()) + 1


def counted_loads(model: DeepseekV3ForCausalLM) -> list[Tensor]:
    """Counters that every later forward pass adds each layer's choices to. *Shape of each:* ``(experts,)``"""
    gates = [layer.mlp.gate for layer in model.model.layers[1:]]
    loads = [torch.zeros(16, dtype=torch.long) for _ in gates]

    def count(load: Tensor, chosen: Tensor) -> None:
        load += chosen.flatten().bincount(minlength=16)

    for gate, load in zip(gates, loads, strict=True):
        gate.register_forward_hook(lambda module, _, output, load=load: count(load, output[2]))
    return loads


@torch.no_grad()
def test_held_out_text_costs_what_metrics_say_and_every_expert_works(
    model: DeepseekV3ForCausalLM, tokenizer: AutoTokenizer, metrics: dict
) -> None:
    stored = metrics["heldout_slice"]
    stream, size = first_documents(tokenizer, stored["documents"])
    assert (size, len(stream) - 1) == (stored["bytes"], stored["tokens"])
    loads, bits = counted_loads(model), 0.0
    for start in range(0, len(stream) - 1, WINDOW):
        window = stream[start : start + WINDOW + 1]
        logits = model(window[None, :-1]).logits[0]
        bits += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
    assert bits / size == pytest.approx(stored["bits_per_byte"], abs=BPB_TOLERANCE)
    assert bits / size < metrics["heldout"]["xz_bits_per_byte"] - 0.5
    assert all((load > 0).all() for load in loads)


def test_no_expert_is_dead_and_loads_are_even_only_over_much_text(metrics: dict) -> None:
    for counts in metrics["heldout"]["expert_choices"]:
        assert min(counts) > 0.005 * sum(counts)
        assert max(counts) > 1.1 * min(counts)
    for counts in metrics["heldout_slice"]["expert_choices"]:
        assert max(counts) > 1.5 * min(counts)
