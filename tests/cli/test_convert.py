"""`moetrt convert`: byte for byte the reference's shards, and a refusal where the reference is silently wrong."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from exporter import cli
from exporter.checkpoint import convert as shards

PARTS = {
    "embed_tokens": ("embed", 0),
    "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "q_proj": ("wq", 0),
    "q_a_proj": ("wq_a", None),
    "q_a_layernorm": ("q_norm", None),
    "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None),
    "kv_a_layernorm": ("kv_norm", None),
    "kv_b_proj": ("wkv_b", 0),
    "o_proj": ("wo", 1),
    "gate": ("gate", None),
    "gate_proj": ("w1", 0),
    "up_proj": ("w3", 0),
    "down_proj": ("w2", 1),
    "norm": ("norm", None),
    "lm_head": ("head", 0),
}
TEXT = {"self_attn": "attn", "mlp": "ffn", "weight_scale_inv": "scale", "e_score_correction_bias": "bias"}


def reference(tensors: dict, experts: int, ranks: int) -> list[dict]:
    """What the reference converter does, naively and with a whole rank in memory (facts of its name map and split)."""
    made = [{} for _ in range(ranks)]
    for hf, tensor in tensors.items():
        name = hf.removeprefix("model.")
        for old, new in TEXT.items():
            name = name.replace(old, new)
        part, dimension = PARTS[name.split(".")[-2]]
        name = name.replace(name.split(".")[-2], part)
        for rank in range(ranks):
            if ".experts." in name:
                if int(name.split(".experts.")[1].split(".")[0]) // (experts // ranks) == rank:
                    made[rank][name] = tensor
            elif dimension is None:
                made[rank][name] = tensor
            else:
                made[rank][name] = tensor.chunk(ranks, dimension)[rank].contiguous()
    return made


def shard_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def reference_files(model: Path, tensors: dict, ranks: int, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    experts = json.loads((model / "config.json").read_text())["n_routed_experts"]
    for rank, made in enumerate(reference(tensors, experts, ranks)):
        save_file(made, folder / f"model{rank}-mp{ranks}.safetensors")
    return shard_files(folder)


CASES = [(family, dtype, ranks) for family in tiny.FAMILIES for dtype in ("bf16", "fp8", "fp32") for ranks in (1, 2, 4) if (dtype, ranks) != ("fp8", 4)]


@pytest.mark.parametrize(("family", "dtype", "ranks"), CASES)
def test_shards_are_byte_for_byte_the_references(moetrt, checkpoint, tmp_path, family, dtype, ranks):
    model = checkpoint(family, dtype)
    expected = reference_files(model, tiny.read_folder(model), ranks, tmp_path / "expected")
    assert moetrt("convert", model, "--output", tmp_path / "made", "--tensor", ranks).code == 0
    assert shard_files(tmp_path / "made") == expected


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_dtype_bf16_is_the_references_cast_then_its_shards(moetrt, checkpoint, tmp_path, ranks):
    model = checkpoint("v3", "fp8")
    expected = reference_files(model, tiny.cast_bf16(tiny.read_folder(model)), ranks, tmp_path / "expected")
    assert moetrt("convert", model, "--output", tmp_path / "made", "--tensor", ranks, "--dtype", "bf16").code == 0
    assert shard_files(tmp_path / "made") == expected


@pytest.mark.parametrize(("source", "dtype", "kind"), [("fp8", "fp16", torch.float16), ("fp8", "fp32", torch.float32), ("bf16", "fp32", torch.float32), ("fp32", "bf16", torch.bfloat16)])
def test_other_dtypes_are_one_cast_of_that(moetrt, checkpoint, tmp_path, source, dtype, kind):
    model = checkpoint("v3", source)
    cast = {name: tensor if name.endswith("_bias") else tensor.to(kind) for name, tensor in tiny.cast_bf16(tiny.read_folder(model)).items()}
    expected = reference_files(model, cast, 2, tmp_path / "expected")
    assert moetrt("convert", model, "--output", tmp_path / "made", "--tensor", 2, "--dtype", dtype).code == 0
    assert shard_files(tmp_path / "made") == expected


def test_tensor_bytes_are_what_plan_said(moetrt, checkpoint, tmp_path):
    for dtype, precision in (("keep", "fp8"), ("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32")):
        folder = tmp_path / dtype
        moetrt("convert", checkpoint("v3", "fp8"), "--output", folder, "--tensor", 2, "--dtype", dtype)
        plan = json.loads(moetrt("plan", checkpoint("v3", "fp8"), "--tensor", 2, "--precision", precision, "--json").out)
        written = [sum(t.nbytes for t in load_file(folder / f"model{rank}-mp2.safetensors").values()) for rank in range(2)]
        assert written == [rank["weight_bytes"] for rank in plan["ranks"]]


def test_ranks_alone_make_what_all_make_together(moetrt, checkpoint, tmp_path):
    for rank in range(2):
        assert moetrt("convert", checkpoint("v3"), "--output", tmp_path / "alone", "--tensor", 2, "--rank", rank).code == 0
        assert len(shard_files(tmp_path / "alone")) == rank + 1
    moetrt("convert", checkpoint("v3"), "--output", tmp_path / "all", "--tensor", 2)
    assert shard_files(tmp_path / "alone") == shard_files(tmp_path / "all")


def test_large_tensors_are_copied_in_pieces(moetrt, checkpoint, tmp_path, monkeypatch):
    model = checkpoint("v2", "fp8")
    moetrt("convert", model, "--output", tmp_path / "one", "--tensor", 2)
    monkeypatch.setattr(shards, "CHUNK", 1000)
    moetrt("convert", model, "--output", tmp_path / "many", "--tensor", 2)
    assert shard_files(tmp_path / "many") == shard_files(tmp_path / "one")


def test_token_files_are_copied_and_nothing_else(moetrt, spoiled, tmp_path):
    model = spoiled()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (model / name).write_text(f'"{name}"')
    (model / "token_folder").mkdir()
    moetrt("convert", model, "--output", tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["model0-mp1.manifest.json", "model0-mp1.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert (tmp_path / "made/tokenizer.json").read_text() == '"tokenizer.json"'


def test_unused_tensors_are_left_out_and_told(moetrt, spoiled, tmp_path):
    model = spoiled()
    save_file({"model.layers.4.eh_proj.weight": torch.zeros(2), "model.layers.4.enorm.weight": torch.zeros(2)}, model / "extra.safetensors")
    outcome = moetrt("convert", model, "--output", tmp_path / "made")
    assert "unused: 2 tensor(s), multi-token prediction, beyond num_hidden_layers" in outcome.out
    assert not any("layers.4" in name for name in load_file(tmp_path / "made/model0-mp1.safetensors"))


def test_dry_run_says_all_and_writes_nothing(moetrt, checkpoint, tmp_path):
    outcome = moetrt("convert", checkpoint("v3"), "--output", tmp_path / "made", "--tensor", 2, "--dry-run")
    assert outcome.code == 0
    assert not (tmp_path / "made").exists()
    moetrt("convert", checkpoint("v3"), "--output", tmp_path / "made", "--tensor", 2)
    for path in (tmp_path / "made").glob("*.safetensors"):
        assert f"{path}  {path.stat().st_size:,} bytes" in outcome.out


def test_a_finished_rank_is_not_written_again_but_another_request_is(moetrt, spoiled, tmp_path):
    model, made = spoiled(), tmp_path / "made"
    moetrt("convert", model, "--output", made)
    before = (made / "model0-mp1.safetensors").stat().st_mtime_ns
    assert "finished already" in moetrt("convert", model, "--output", made).out
    assert (made / "model0-mp1.safetensors").stat().st_mtime_ns == before
    assert "finished already" not in moetrt("convert", model, "--output", made, "--dtype", "fp32").out
    assert load_file(made / "model0-mp1.safetensors")["norm.weight"].dtype == torch.float32


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_shard_is_written_again(moetrt, checkpoint, tmp_path, damage):
    made = tmp_path / "made"
    moetrt("convert", checkpoint("v3"), "--output", made)
    path, whole = made / "model0-mp1.safetensors", shard_files(made)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        (made / "model0-mp1.manifest.json").write_text("{")
    assert moetrt("convert", checkpoint("v3"), "--output", made).code == 0
    assert shard_files(made) == whole


def edit_config(model: Path, **fields) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(model: Path) -> None:
    path = model / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit_shard(model: Path, **tensors) -> None:
    path = model / "model-00002-of-00002.safetensors"
    save_file({name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}, path)


def point_nowhere(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00003-of-00002.safetensors"
    path.write_text(json.dumps(index))


SECOND, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"
BAD = {
    "truncated shard": (truncate, [], "model-00001-of-00002.safetensors is truncated"),
    "missing shard": (lambda model: (model / SECOND).unlink(), [], f"lacks {SECOND}"),
    "missing shard, no index": (lambda model: [(model / name).unlink() for name in (SECOND, INDEX)], [], "in all"),
    "duplicate shard": (lambda model: shutil.copy(model / SECOND, model / "copy.safetensors"), [], "is both in copy.safetensors and in"),
    "index pointing nowhere": (point_nowhere, [], "lacks model-00003-of-00002.safetensors"),
    "index of another shape": (lambda model: (model / INDEX).write_text('{"weight_map": [1]}'), [], "has no weight_map"),
    "broken index": (lambda model: (model / INDEX).write_text("{"), [], f"{INDEX} is not valid JSON"),
    "empty folder": (lambda model: [path.unlink() for path in model.glob("*.safetensors*")], [], "has no *.safetensors files"),
    "empty shard": (lambda model: (model / SECOND).write_bytes(b""), [], "truncated or no safetensors file"),
    "unknown tensor": (lambda model: edit_shard(model, extra=torch.zeros(2)), [], "has, unlike its config.json, extra"),
    "wrong dtype": (lambda model: edit_shard(model, **{"model.norm.weight": torch.zeros(64, dtype=torch.int64)}), [], "model.norm.weight in"),
    "wrong shape": (lambda model: edit_shard(model, **{"model.norm.weight": torch.zeros(63)}), [], "[63], where F32 or F16 or BF16 [64] is expected"),
    "fewer experts in config": (lambda model: edit_config(model, n_routed_experts=8), [], "mlp.experts.10.down_proj.weight"),
    "more experts in config": (lambda model: edit_config(model, n_routed_experts=32), [], "lacks model.layers.1.mlp.experts.16"),
    "more layers in config": (lambda model: edit_config(model, num_hidden_layers=5), [], "lacks model.layers.4"),
    "heads cut": (lambda model: None, ["--tensor", 8], "num_attention_heads: 4 heads cannot be shared evenly among 8"),
    "rank out of range": (lambda model: None, ["--tensor", 2, "--rank", 2], "rank 2 is not in a plan of 2 ranks"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(moetrt, spoiled, tmp_path, case):
    change, options, message = BAD[case]
    model = spoiled()
    change(model)
    outcome = moetrt("convert", model, "--output", tmp_path / "made", *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert message in outcome.err
    assert outcome.err.startswith("Error: ")
    assert not (tmp_path / "made").is_dir()


def test_fp8_grids_that_a_split_would_cut_are_refused_unless_dequantised(moetrt, checkpoint, tmp_path):
    model = checkpoint("v3", "fp8")
    outcome = moetrt("convert", model, "--output", tmp_path / "made", "--tensor", 4)
    assert outcome.code == 1
    assert "self_attn.o_proj: 256 columns over 4 tensor ranks are 64 each" in outcome.err
    assert "Choose --tensor from 1, 2." in outcome.err
    assert moetrt("convert", model, "--output", tmp_path / "made", "--tensor", 4, "--dtype", "bf16").code == 0


def test_values_beyond_float16_are_refused_not_made_infinite(moetrt, spoiled, tmp_path):
    model = spoiled()
    edit_shard(model, **{"model.norm.weight": torch.full((64,), 1e6)})
    outcome = moetrt("convert", model, "--output", tmp_path / "made", "--dtype", "fp16")
    assert outcome.code == 1
    assert "beyond float16's 65504" in outcome.err
    assert not (tmp_path / "made").exists()


def test_the_models_own_folder_is_no_output(moetrt, spoiled):
    model = spoiled()
    before = sorted(model.iterdir())
    outcome = moetrt("convert", model, "--output", model)
    assert outcome.code == 2
    assert sorted(model.iterdir()) == before


def test_an_output_that_is_a_file_is_wrong_use(moetrt, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = moetrt("convert", checkpoint("v3"), "--output", tmp_path / "file")
    assert outcome.code == 2
    assert "is a file" in outcome.err


def test_an_output_that_cannot_be_made_is_refused(moetrt, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = moetrt("convert", checkpoint("v3"), "--output", tmp_path / "file" / "made")
    assert outcome.code == 1
    assert "file" in outcome.err


def test_a_disk_without_room_is_refused_before_anything_is_written(moetrt, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    outcome = moetrt("convert", checkpoint("v3"), "--output", tmp_path / "made")
    assert outcome.code == 1
    assert "its disk has 10 free" in outcome.err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("failure", "code", "message"), [(OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"), (KeyboardInterrupt(), 130, "interrupted")])
def test_what_breaks_off_leaves_finished_ranks_alone_and_a_rerun_succeeds(moetrt, checkpoint, tmp_path, monkeypatch, failure, code, message):
    made, write, calls = tmp_path / "made", shards.writer.Hashing.write, []

    def fail(self, data):
        calls.append(data)
        if len(calls) == 200:
            raise failure
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(shards.writer.Hashing, "write", fail)
        outcome = moetrt("convert", checkpoint("v3"), "--output", made, "--tensor", 2)
    assert outcome.code == code
    assert message in outcome.err
    assert sorted(path.name for path in made.iterdir()) == ["model0-mp2.manifest.json", "model0-mp2.safetensors"]
    assert "finished already" in moetrt("convert", checkpoint("v3"), "--output", made, "--tensor", 2).out
    assert len(shard_files(made)) == 2


def test_an_unwritable_file_is_one_message(moetrt, checkpoint, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shards.files.os, "replace", refuse)
    outcome = moetrt("convert", checkpoint("v3"), "--output", tmp_path / "made")
    assert outcome.code == 1
    assert "Permission denied" in outcome.err
    assert not (tmp_path / "made").exists()


def test_a_missing_library_names_the_extra_that_brings_it(moetrt, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'onnxruntime.capi'", name="onnxruntime.capi")

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    outcome = moetrt("build")
    assert outcome.code == 1
    assert "onnxruntime is not installed" in outcome.err
    assert "pip install 'moetrt[ort]'" in outcome.err
