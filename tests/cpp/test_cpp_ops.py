"""Engines of the sample model that need our ops, from C++: Python's bytes, and Python's words where the library is not the one that they were built with."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from exporter.errors import MoetrtError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan import files
from exporter.plan.parallel import Plan

ROOT = Path(__file__).parents[2]
BUILD, SANITIZED = ROOT / "build/cpp", ROOT / "build/cpp-sanitized"
OPS = BUILD / "libmoetrt-ops.so"
RUNTIME = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
PROMPT = [3, 17, 42, 99, 5, 64, 2, 111, 8, 29, 77]

pytestmark = [
    pytest.mark.skipif(not (BUILD / "moetrt-run").is_file(), reason="the C++ runtime is not built (make cpp)"),
    pytest.mark.skipif(not OPS.is_file(), reason="the library of ops is not built (make cpp)"),
]


def call(folder, *options, build=BUILD):
    words = [build / "moetrt-run", folder, "--onnxruntime", RUNTIME, "--token-ids", ",".join(map(str, PROMPT)), *options]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """``built(scheme, tensor)``: engines with our ops, made on first asking."""
    root = tmp_path_factory.mktemp("ops")

    def graphs(tensor):
        if not (target := root / f"graphs-{tensor}").exists():
            export_model(ExportRequest(ROOT / "examples/tiny-v3", target, Plan(tensor)))
        return target

    def table():
        if not (target := root / "table.json").exists():
            (root / "prompts.jsonl").write_text(json.dumps({"token_ids": PROMPT}))
            calibrate(CalibrationRequest(graphs(1), root / "prompts.jsonl", target, min_tokens_per_expert=1))
        return target

    def make(scheme="int8-weights", tensor=1):
        if not (target := root / f"{scheme}-{tensor}").exists():
            quantize(QuantizeRequest(graphs(tensor), root / f"graphs-{scheme}-{tensor}", table() if scheme == "int8" else None, scheme))
            build_engines(EngineRequest(root / f"graphs-{scheme}-{tensor}", "ort", target, plugins=OPS))
        return target

    return make


@pytest.fixture
def spoilt(built, tmp_path):
    """A private copy of engines of two ranks, to be damaged."""
    return Path(shutil.copytree(built("int8-weights", 2), tmp_path / "ort"))


def change(folder, rank=0, **fields):
    """What a rank records of the library."""
    path = folder / f"rank-{rank:02}/manifest.json"
    record = json.loads(path.read_text())
    record["options"]["plugins"] |= fields
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("scheme", ["int8-weights", "int8"])
def test_logits_are_pythons_to_the_byte_and_greedy_tokens_are_equal(built, tmp_path, scheme, tensor):
    folder = built(scheme, tensor)
    lowered = {lowering for path in folder.glob("rank-*/manifest.json") for lowering in map(str, json.loads(path.read_text())["lowerings"])}
    assert any("packed_experts_ort" in lowering for lowering in lowered)
    done, report = call(folder, "--logits", tmp_path / "logits"), call(folder, "--max-tokens", 16, "--ignore-eos", "--json")
    assert (done.returncode, report.returncode) == (0, 0), done.stderr + report.stderr
    with load(folder) as chain:
        assert (tmp_path / "logits").read_bytes() == np.ascontiguousarray(chain.logits(PROMPT), np.float32).tobytes()
        assert json.loads(report.stdout)["tokens"] == chain.generate(PROMPT, max_tokens=16, ignore_eos=True)


def test_ranks_that_are_walked_one_after_another_have_the_library_too(spoilt, tmp_path):
    (spoilt / "joined.json").unlink()
    done = call(spoilt, "--logits", tmp_path / "logits")
    assert done.returncode == 0, done.stderr
    with load(spoilt, joined=False) as chain:
        assert (tmp_path / "logits").read_bytes() == np.ascontiguousarray(chain.logits(PROMPT), np.float32).tobytes()


def test_the_library_may_lie_elsewhere(spoilt):
    beside = call(spoilt, "--max-tokens", 4)
    (spoilt / OPS.name).unlink()
    assert call(spoilt, "--max-tokens", 4).returncode == 1
    given = call(spoilt, "--max-tokens", 4, "--plugins", OPS)
    assert (given.returncode, given.stdout) == (0, beside.stdout), given.stderr


def damage(folder):
    with (folder / OPS.name).open("ab") as library:
        library.write(b"\0")


def compiled(folder, source):
    """Another library in the place of the ops, which both ranks record."""
    target = folder / OPS.name
    target.unlink()
    subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-", "-o", target], input=source, text=True, check=True)
    for rank in range(2):
        change(folder, rank, sha256=files.sha256_file(target))


SPOILED = {
    "a library lost": lambda folder: (folder / OPS.name).unlink(),
    "a library damaged": damage,
    "a rank of another library": lambda folder: change(folder, 1, sha256="0" * 64),
    "ops of another version": lambda folder: change(folder, 1, version="none"),
    "a library of something else": lambda folder: compiled(folder, "int x;"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_python_refuses_is_refused_in_the_same_words(spoilt, name):
    SPOILED[name](spoilt)
    with pytest.raises(MoetrtError) as refusal:
        load(spoilt)
    done = call(spoilt)
    assert (done.returncode, done.stderr) == (refusal.value.exit_code, f"Error: {refusal.value.message}\nHint: {refusal.value.hint}\n")


@pytest.mark.parametrize("library", [Path("/nowhere/libmoetrt-ops.so"), OPS.parent / "moetrt-run"])
def test_another_library_is_refused_in_the_same_words_when_it_is_given(built, library):
    with pytest.raises(MoetrtError) as refusal:
        load(built(), plugins=library)
    done = call(built(), "--plugins", library)
    assert (done.returncode, done.stderr) == (refusal.value.exit_code, f"Error: {refusal.value.message}\nHint: {refusal.value.hint}\n")


def test_a_library_for_engines_that_need_none_is_refused_in_the_same_words(engines):
    with pytest.raises(MoetrtError) as refusal:
        load(engines("v3", 1), plugins=OPS)
    done = call(engines("v3", 1), "--plugins", OPS)
    assert (done.returncode, done.stderr) == (refusal.value.exit_code, f"Error: {refusal.value.message}\nHint: {refusal.value.hint}\n")


def test_a_library_that_onnxruntime_does_not_take_is_told_by_its_path(spoilt):
    """In the same words, but for ONNX Runtime's own."""
    version = json.loads((spoilt / "rank-00/manifest.json").read_text())["options"]["plugins"]["version"]
    compiled(spoilt, f'const char* moetrt_ops_version(void) {{ return "{version}"; }}')
    with pytest.raises(MoetrtError) as refusal:
        load(spoilt)
    done, told = call(spoilt), f"ONNX Runtime {onnxruntime.__version__} does not take the ops of {(spoilt / OPS.name).resolve()}: "
    assert refusal.value.message.startswith(told)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {told}")
    assert done.stderr.endswith(f"\nHint: {refusal.value.hint}\n")


@pytest.mark.skipif(not (SANITIZED / "moetrt-run").is_file(), reason="the sanitized C++ runtime is not built (make cpp-sanitized)")
@pytest.mark.parametrize("scheme", ["int8-weights", "int8"])
def test_generating_is_clean_under_sanitizers(built, tmp_path, scheme):
    """With the library that the engines were built with, and with one that is sanitized itself, where there is one: Python could not load that."""
    folder = Path(shutil.copytree(built(scheme, 2), tmp_path / "ort"))
    wanted = call(folder, "--max-tokens", 4, "--ignore-eos").stdout
    libraries = [path for path in (OPS, SANITIZED / OPS.name) if path.is_file()]
    for library in libraries:
        for rank in range(2):
            change(folder, rank, sha256=files.sha256_file(library))
        done = call(folder, "--max-tokens", 4, "--ignore-eos", "--plugins", library, build=SANITIZED)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr
