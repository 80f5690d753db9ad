"""Safetensors headers are read with suspicion."""

import json
import re
from pathlib import Path

import pytest
import tiny
import torch

from exporter.checkpoint.reader import HEADER_LIMIT, Checkpoint, read_header
from exporter.errors import CheckpointError
from exporter.models import FAMILIES, read_model


def file(path: Path, table: dict | bytes, data: bytes = b"") -> Path:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start, stop, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": shape or [stop - start], "data_offsets": [start, stop]}


BROKEN = {
    "truncated": ({"a": entry(0, 9)}, b"12345678", "is truncated: it has"),
    "followed by other bytes": ({"a": entry(0, 8)}, b"123456789", "followed by other bytes"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, b"1" * 12, "b begins at byte .* overlap"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, b"1" * 12, "leave a gap"),
    "gap at the start": ({"a": entry(4, 8)}, b"1" * 8, "leave a gap"),
    "shape and bytes": ({"a": entry(0, 8, [9])}, b"1" * 8, "takes 8 bytes, its shape .9. of U8 asks for 9"),
    "negative shape": ({"a": entry(0, 8, [-8])}, b"1" * 8, "broken header"),
    "backwards": ({"a": entry(8, 0)}, b"1" * 8, "broken header"),
    "unknown dtype": ({"a": entry(0, 8, dtype="F6")}, b"1" * 8, "a has the dtype F6"),
    "no offsets": ({"a": {"dtype": "U8", "shape": [8]}}, b"1" * 8, "broken header: KeyError: 'data_offsets'"),
    "not an object": (b"[1, 2]", b"", "broken header"),
    "not JSON": (b"{]", b"", "broken header"),
    "not UTF-8": (b'{"\xff": 1}', b"", "broken header"),
    "a name twice": (b'{"a": 1, "a": 2}', b"", "'a' stands there twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_what_is_wrong(tmp_path, case):
    table, data, message = BROKEN[case]
    path = file(tmp_path / "x.safetensors", table, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert str(path) in error.value.message


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 9, (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}"])
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read_header(path)


def opened(folder):
    return Checkpoint(folder, read_model(folder).config)


def coverage(folder):
    checkpoint = opened(folder)
    family = FAMILIES[checkpoint.config.family]
    return checkpoint.coverage(checkpoint.config, family.KEYS, family.UNUSED)


@pytest.mark.parametrize(("family", "dtype"), [(family, dtype) for family in tiny.FAMILIES for dtype in ("bf16", "fp32", "fp8")])
def test_every_tensor_that_transformers_writes_is_known(checkpoint, family, dtype):
    assert coverage(checkpoint(family, dtype)) == {}


def rewrite(folder: Path, change) -> Path:
    config, tensors = json.loads((folder / "config.json").read_text()), tiny.read_folder(folder)
    change(tensors)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    return tiny.write_folder(folder, config, tensors)


def test_unused_tensors_have_reasons(spoiled):
    def change(tensors):
        tensors["model.layers.4.eh_proj.weight"] = torch.zeros(4, 4)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    reasons = coverage(rewrite(spoiled(), change))
    assert reasons == {
        "model.layers.4.eh_proj.weight": "multi-token prediction, beyond num_hidden_layers",
        "model.layers.0.self_attn.rotary_emb.inv_freq": "computed from rope_theta",
    }


ROUTER = "model.layers.1.mlp.gate.weight"
PROBLEMS = {
    "missing": ("bf16", lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
    "unknown": ("bf16", lambda t: t.update({"model.extra.weight": torch.zeros(2)}), "has, unlike its config.json, model.extra.weight"),
    "shape": ("bf16", lambda t: t.update({ROUTER: torch.zeros(8, 64)}), rf"{ROUTER} in .* is F32 \[8, 64\], where .* \[16, 64\] is expected"),
    "dtype": ("bf16", lambda t: t.update({ROUTER: torch.zeros(16, 64, dtype=torch.int64)}), f"{ROUTER} in .* is I64"),
    "scales missing": ("fp8", lambda t: t.pop("model.layers.0.self_attn.o_proj.weight_scale_inv"), "lacks model.layers.0.self_attn.o_proj.weight_scale_inv"),
    "scales misshapen": ("fp8", lambda t: t.update({"model.layers.0.self_attn.o_proj.weight_scale_inv": torch.zeros(1, 2)}), r"F32 \[1, 2\], where F32 \[2, 2\]"),
    "not FP8": ("fp8", lambda t: t.update({"model.layers.0.self_attn.o_proj.weight": torch.zeros(256, 256)}), "where F8_E4M3"),
    "experts": ("bf16", lambda t: [t.pop(name) for name in list(t) if "experts.15." in name], r"lacks .*experts.15.* … 9 in all"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_checkpoint_is_a_closed_world(spoiled, case):
    dtype, change, message = PROBLEMS[case]
    folder = rewrite(spoiled("v3", dtype), change)
    with pytest.raises(CheckpointError) as error:
        coverage(folder)
    assert re.search(message, error.value.message)
    assert error.value.hint


def test_all_kinds_of_problems_are_told_at_once(spoiled):
    def change(tensors):
        tensors.pop("model.norm.weight")
        tensors["model.extra.weight"] = torch.zeros(2)
        tensors[ROUTER] = torch.zeros(8, 64)

    with pytest.raises(CheckpointError) as error:
        coverage(rewrite(spoiled(), change))
    assert all(name in error.value.message for name in ("model.norm.weight", "model.extra.weight", ROUTER))


def test_the_fingerprint_knows_order_of_neither_files_nor_tensors_but_every_tensors_ends(spoiled):
    folder = spoiled()
    before = opened(folder).fingerprint()
    assert opened(rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("lm_head.weight")}))).fingerprint() == before
    rewrite(folder, lambda tensors: tensors["lm_head.weight"][-1, -1].add_(1))
    assert opened(folder).fingerprint() != before


def test_a_file_outside_the_index_is_left_out_by_name_unless_it_repeats_the_models_tensors(tmp_path):
    from safetensors.torch import save_file

    folder, family = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config("v3")), FAMILIES["deepseek_v3"]
    config = read_model(folder).config
    save_file({"base_model.lora_A.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
    unused = Checkpoint(folder, config).coverage(config, family.KEYS, family.UNUSED)
    assert unused == {"base_model.lora_A.weight": "in adapter_model.safetensors, which model.safetensors.index.json does not name"}
    save_file({"model.norm.weight": torch.zeros(64)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="model.norm.weight is both in adapter_model.safetensors and in"):
        Checkpoint(folder, config)
