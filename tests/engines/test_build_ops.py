"""Engines of ONNX Runtime with our own ops in them: what is recorded and shared, what they compute, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.backends.derived import is_bfloat16
from engines.build import EngineRequest, build_engines
from engines.inspection import inspect
from exporter.errors import BuildError, LoadError, UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank

PROMPT = [0, 5, 9, 77, 3, 41]


@pytest.fixture(scope="module")
def quantised(engines, tmp_path_factory: pytest.TempPathFactory):
    """``quantised(scheme, tensor, pipeline)``: graphs of the tiny DeepSeek-V3."""
    root = tmp_path_factory.mktemp("quantised")
    prompts = root / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"token_ids": np.random.default_rng(seed).integers(2, 128, 14).tolist()}) + "\n" for seed in range(3)))

    def make(scheme: str, tensor: int = 1, pipeline: int = 1) -> Path:
        graphs, table, output = engines("v3", tensor, pipeline).parent / "graphs", root / "table.json", root / f"{scheme}-{tensor}-{pipeline}"
        if not table.exists():
            calibrate(CalibrationRequest(engines("v3").parent / "graphs", prompts, table, min_tokens_per_expert=1))
        if not output.exists():
            quantize(QuantizeRequest(graphs, output, table, scheme))
        return output

    return make


def build(graphs: Path, output: Path, library: Path, fast: bool = False) -> Path:
    build_engines(EngineRequest(graphs, "ort", output, max_context=32, max_batch=2, plugins=library, fast=fast))
    return output


def record(folder: Path) -> EngineRank:
    return files.read_record(EngineRank, folder / "rank-00" / records.MANIFEST)


@pytest.fixture(scope="module")
def built(quantised, ops_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(quantised("int8-weights", 2), tmp_path_factory.mktemp("built") / "ort", ops_library)


def test_the_library_is_recorded_and_lies_beside_the_engines(built: Path, ops_library: Path) -> None:
    recorded = record(built).options["plugins"]
    assert recorded == {"library": "libmoetrt-ops.so", "version": "2", "sha256": files.sha256_file(ops_library)}
    assert (built / "libmoetrt-ops.so").read_bytes() == ops_library.read_bytes()
    assert {one.chosen for one in record(built).lowerings if one.op == "QuantizedExperts"} == {"packed_experts_ort"}
    assert any(note.startswith("needs libmoetrt-ops.so, plugins of version 2") for note in inspect(built, True).notes)


def test_all_weights_are_mapped_not_copied(built: Path) -> None:
    """No stored matrix is left in an order that ONNX Runtime would pack anew."""
    import onnx

    for path in (built / "rank-00").glob("*.onnx"):
        names = {name for node in onnx.load(path, load_external_data=False).graph.node for name in node.input}
        assert not {name for name in names if name in record(built).quantization.weights}


@pytest.mark.parametrize(
    ("scheme", "tensor", "pipeline"),
    [("int8", 1, 1), ("int8-dynamic", 1, 1), ("int8-weights", 1, 1), ("int8-weights-32", 1, 1), ("int4-weights", 1, 1), ("int8", 2, 1), ("int8-weights", 2, 2)],
)
def test_engines_compute_what_their_graphs_say(moetrt, quantised, scheme: str, tensor: int, pipeline: int, ops_library: Path, tmp_path: Path) -> None:
    graphs = quantised(scheme, tensor, pipeline)
    engines = build(graphs, tmp_path / "ort", ops_library)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"token_ids": PROMPT}) + "\n")
    result = moetrt("compare", graphs, engines, "--prompts", prompts, "--mode", "segments")
    assert (result.code, result.out.splitlines()[-1]) == (0, "same"), result.out


def bits_of(folder: Path) -> set[int]:
    """Of the values of all matrices that our kernels read."""
    import onnx

    graphs = [onnx.load(path, load_external_data=False).graph for path in (folder / "rank-00").glob("*.onnx")]
    return {attribute.i for graph in graphs for node in graph.node for attribute in node.attribute if attribute.name == "bits"}


@pytest.mark.parametrize("tensor", [1, 2])
def test_float_engines_keep_weights_as_the_checkpoint_has_them(moetrt, engines, tensor: int, ops_library: Path, tmp_path: Path) -> None:
    """float32 graphs of a bfloat16 checkpoint hold bfloat16 values: the engines hold them in half the bytes."""
    graphs, prompts = engines("v3", tensor).parent / "graphs", tmp_path / "prompts.jsonl"
    output = build(graphs, tmp_path / "ort", ops_library)
    assert bits_of(output) == {16}
    assert {one.chosen for one in record(output).lowerings if one.op == "Experts"} == {"packed_experts_ort"}
    prompts.write_text(json.dumps({"token_ids": PROMPT}) + "\n")
    result = moetrt("compare", graphs, output, "--prompts", prompts, "--mode", "segments")
    assert (result.code, result.out.splitlines()[-1]) == (0, "same"), result.out


def test_one_value_that_is_no_bfloat16_keeps_its_matrix_in_float32(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    whole = np.ones((300, 70), np.float32)
    finer = whole.copy()
    finer[299, 69] = 1 + 2**-23
    save_file({"whole": whole, "finer": finer}, tmp_path / "weights.safetensors")
    assert is_bfloat16(tmp_path / "weights.safetensors", "whole")
    assert not is_bfloat16(tmp_path / "weights.safetensors", "finer")


def test_with_leave_they_are_near(quantised, ops_library: Path, tmp_path: Path) -> None:
    graphs = quantised("int8-weights")
    exact, fast = build(graphs, tmp_path / "exact", ops_library), build(graphs, tmp_path / "fast", ops_library, fast=True)
    with load(exact) as one, load(fast) as other:
        wanted, got = one.logits(PROMPT), other.logits(PROMPT)
    assert 0 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-3


def test_ranks_give_the_same_joined_and_apart(built: Path) -> None:
    with load(built) as joined, load(built, joined=False) as apart:
        np.testing.assert_allclose(joined.logits(PROMPT), apart.logits(PROMPT), rtol=0, atol=2e-5)
        assert joined.generate(PROMPT, max_tokens=8, ignore_eos=True) == apart.generate(PROMPT, max_tokens=8, ignore_eos=True)


def test_another_library_is_another_build(built: Path, quantised, ops_library: Path, tmp_path: Path) -> None:
    asked = EngineRequest(quantised("int8-weights"), "ort", tmp_path / "ort", max_context=32, plugins=ops_library)
    assert build_engines(asked).built == (0,)
    assert build_engines(asked).kept == (0,)
    assert build_engines(EngineRequest(asked.graphs, "ort", asked.output, max_context=32)).built == (0,)


def test_engines_without_their_library_are_refused(built: Path, ops_library: Path, tmp_path: Path) -> None:
    engines = Path(shutil.copytree(built, tmp_path / "ort"))
    (engines / "libmoetrt-ops.so").unlink()
    with pytest.raises(LoadError, match=r"libmoetrt-ops\.so is missing; .* built with libmoetrt-ops\.so, plugins of version 2, sha256 \w{12}\.") as refused:
        load(engines)
    assert "--plugins FILE" in refused.value.hint
    load(engines, plugins=ops_library).close()
    (engines / "libmoetrt-ops.so").write_bytes(ops_library.read_bytes() + b"\0")
    with pytest.raises(LoadError, match=r"libmoetrt-ops\.so has the sha256 \w{12}; "):
        load(engines)


def test_a_library_that_nobody_needs_is_refused(engines, ops_library: Path, moetrt) -> None:
    with pytest.raises(UsageError, match=r"need no library of kernels, but .*libmoetrt-ops\.so is given"):
        load(engines("v3"), plugins=ops_library)
    assert moetrt("run", engines("v3"), "--token-ids", "5", "--plugins", ops_library).code == 2


def test_what_is_no_library_of_ops_is_refused(quantised, ops_library: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    with pytest.raises(BuildError, match=r"wrong\.so is no library of moetrt's ops for ONNX Runtime that can be loaded here"):
        build(quantised("int8-weights"), tmp_path / "ort", wrong)
    assert not list((tmp_path / "ort").rglob("*"))
    with pytest.raises(UsageError, match="ort-cuda has no use for --plugins"):
        build_engines(EngineRequest(quantised("int8-weights"), "ort-cuda", tmp_path / "cuda", plugins=ops_library))
