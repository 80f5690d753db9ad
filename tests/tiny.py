"""Small random checkpoints of every family, with the real key names, and their logits by transformers."""

import json
import tempfile
from pathlib import Path
from typing import Any

BLOCK = 128
"""Edge of the FP8 scale blocks, as released."""

_COMMON = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
}

_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
}

_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
    "rope_scaling": _COMMON["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
}

FAMILIES = {
    "v2-lite": _V2 | {"q_lora_rank": None, "topk_method": "greedy", "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
    "v2": _V2 | {"topk_method": "group_limited_greedy", "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
    "v3": _V3,
    "v3-noq": _V3 | {"q_lora_rank": None},
}

FP8_WIDTHS = {
    "hidden_size": 256,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 512,
    "moe_intermediate_size": 192,
    "n_shared_experts": 4,
}
"""Overrides whose scale grids two tensor ranks may share and four may not; experts and kv_a end in partial blocks."""

FP8_QUANTIZATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}


def tiny_config(family: str, **overrides: Any) -> dict[str, Any]:
    """A config.json as released models write it: ``v2-lite``, ``v2``, ``v3`` or ``v3-noq``, legal for 1, 2 and 4 tensor ranks."""
    return _COMMON | {"torch_dtype": "bfloat16"} | FAMILIES[family] | overrides


def write_checkpoint(folder: Path, config: dict[str, Any], seed: int = 0, dtype: str = "bf16", shards: int = 2) -> Path:
    """A Hugging Face folder of random weights that transformers made.

    :param dtype: ``bf16``, ``fp32``, or ``fp8`` (blocks of 128 by 128 with ``weight_scale_inv``).
    """
    tensors = _random_tensors(config, seed)
    if dtype == "fp8":
        tensors, config = _quantize_all(tensors), config | {"quantization_config": FP8_QUANTIZATION}
    elif dtype == "bf16":
        tensors = {name: tensor if _keeps_float32(name) else tensor.bfloat16() for name, tensor in tensors.items()}
    else:
        config = config | {"torch_dtype": "float32"}
    return write_folder(folder, config, tensors, shards)


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Any], shards: int = 2) -> Path:
    """config.json, ``shards`` safetensors files and their index, as a release lays them out."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_folder(folder: Path) -> dict[str, Any]:
    """Every tensor of a Hugging Face folder, by torch."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def reference_model(folder: Path) -> Any:
    """transformers' model in float32, eager; an FP8 checkpoint is cast to bf16 first."""
    import torch
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        if config.pop("quantization_config", None):
            folder = write_folder(Path(scratch), config, cast_bf16(read_folder(folder)))
        # transformers keeps the files mapped unless the dtype changes: clone before the scratch folder goes.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.eval()


def reference_logits(folder: Path, token_ids: list[list[int]]) -> Any:
    """Logits of rows of equal length. *Shape:* float32 numpy ``(rows, tokens, vocab)``."""
    import torch

    with torch.no_grad():
        return reference_model(folder)(torch.tensor(token_ids)).logits.float().numpy()


def cast_bf16(tensors: dict[str, Any]) -> dict[str, Any]:
    """The FP8 cast of the reference, naively: float32 product, one rounding to nearest even; scale grids go."""
    import torch

    cast = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e4m3fn:
            scale = tensors[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            cast[name] = (tensor.float() * scale[: tensor.shape[0], : tensor.shape[1]]).bfloat16()
        elif not name.endswith("_scale_inv"):
            cast[name] = tensor
    return cast


def quantize(weight: Any) -> tuple[Any, Any]:
    """A weight as E4M3 and its float32 scale grid, block by block."""
    import torch

    rows, columns = weight.shape
    scale = torch.ones(-(-rows // BLOCK), -(-columns // BLOCK))
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scale[i, j] = weight[block].abs().max() / 448
            values[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
    return values, scale


def _quantize_all(tensors: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(("_proj.weight", "_with_mqa.weight")):
            result[name], result[f"{name}_scale_inv"] = quantize(tensor)
        else:
            result[name] = tensor if _keeps_float32(name) else tensor.bfloat16()
    return result


def _keeps_float32(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def _random_tensors(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Float32 tensors under the release's names, spread so that routers have clear favourites."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(seed)
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(scratch), dtype=torch.float32)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in name:
                tensor.data = _random(name, tensor.shape)
        model.save_pretrained(scratch)
        return {name: tensor.clone() for file in Path(scratch).glob("*.safetensors") for name, tensor in load_file(file).items()}


def _random(name: str, shape: tuple[int, ...]) -> Any:
    import torch

    if name.endswith("e_score_correction_bias"):
        return 0.2 * torch.randn(shape)
    if "norm" in name:
        return 1 + 0.1 * torch.randn(shape)
    if name.endswith("mlp.gate.weight"):
        return 0.4 * torch.randn(shape)
    return torch.randn(shape) * shape[-1] ** -0.5
