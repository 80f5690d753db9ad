"""Engines for CUDA from C++: opened as Python opens them, refused as Python refuses them; and the binding of a device's memory, on a CPU that plays one."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from engines import load
from engines.build import EngineRequest, build_engines
from exporter.errors import MoetrtError

BUILDS = Path(__file__).parents[2] / "build"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
PROMPT = [3, 17, 42, 99, 5, 64, 2, 111, 8, 29, 77]
WORDS = ",".join(map(str, PROMPT))

pytestmark = pytest.mark.skipif(not (BUILDS / "cpp/moetrt-device-run").is_file(), reason="the C++ runtime is not built (make cpp)")
needs_no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA: nothing is refused")


def run(program, *words):
    return subprocess.run(list(map(str, [BUILDS / program, *words])), capture_output=True, text=True, check=False)


@pytest.fixture
def cuda_engines(engines, tmp_path):
    """``cuda_engines(tensor, …)``: engines of ``ort-cuda``, written where there is no CUDA."""

    def make(tensor=1, **options):
        build_engines(EngineRequest(engines("v3", tensor, **options).parent / "graphs", "ort-cuda", tmp_path / "ort-cuda"))
        return tmp_path / "ort-cuda"

    return make


def on_cpu(folder):
    """Their manifests changed to what a CPU opens; the graphs are those for CUDA."""
    for path in folder.glob("rank-*/manifest.json"):
        record = json.loads(path.read_text())
        record["options"]["providers"] = ["CPUExecutionProvider"]
        path.write_text(json.dumps(record))
    return folder


@needs_no_cuda
@pytest.mark.parametrize("tensor", [1, 2])
def test_without_cuda_they_are_refused_in_pythons_words(cuda_engines, tensor):
    folder = cuda_engines(tensor)
    with pytest.raises(MoetrtError) as refusal:
        load(folder)
    done = run("cpp/moetrt-run", folder, "--onnxruntime", LIBRARY, "--token-ids", WORDS)
    assert done.returncode == 1
    assert done.stderr == f"Error: {refusal.value.message}\nHint: {refusal.value.hint}\n"


def test_a_provider_that_no_onnxruntime_has_is_refused_in_pythons_words(engines, tmp_path):
    folder = Path(shutil.copytree(engines("v3"), tmp_path / "ort"))
    path = folder / "rank-00/manifest.json"
    path.write_text(path.read_text().replace("CPUExecutionProvider", "AbacusExecutionProvider"))
    with pytest.raises(MoetrtError) as refusal:
        load(folder)
    done = run("cpp/moetrt-run", folder, "--onnxruntime", LIBRARY, "--token-ids", WORDS)
    assert done.stderr == f"Error: {refusal.value.message}\nHint: {refusal.value.hint}\n"


def test_what_cannot_be_opened_is_told_with_pythons_hint(engines, tmp_path):
    folder = Path(shutil.copytree(engines("v3"), tmp_path / "ort"))
    graph = folder / "rank-00/rank.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(MoetrtError) as refusal:
        load(folder)
    done = run("cpp/moetrt-run", folder, "--onnxruntime", LIBRARY, "--token-ids", WORDS)
    assert done.returncode == 1
    assert f"ONNX Runtime cannot open {graph}: " in done.stderr and f"Hint: {refusal.value.hint}" in done.stderr


@pytest.mark.parametrize("build", ["cpp", "cpp-sanitized"])
@pytest.mark.parametrize("how", ["captured", "eager"])
@pytest.mark.parametrize(("tensor", "options"), [(1, {}), (2, {"pipeline": 2}), (2, {"precision": "fp16"})])
def test_values_in_a_devices_memory_are_pythons_to_the_byte(cuda_engines, tmp_path, build, how, tensor, options):
    """Caches, inputs and results from the session's own allocator, reached by copies; caches of another length after and before; rows of three lengths at once."""
    if not (BUILDS / build / "moetrt-device-run").is_file():
        pytest.skip("the sanitized C++ runtime is not built (make cpp-sanitized)")
    folder = on_cpu(cuda_engines(tensor, **options))
    done = run(f"{build}/moetrt-device-run", folder, LIBRARY, tmp_path / "logits", how, WORDS)
    assert done.returncode == 0, done.stderr
    with load(folder, joined=False) as chain:
        assert (tmp_path / "logits").read_bytes() == np.ascontiguousarray(chain.logits(PROMPT), np.float32).tobytes()
        wanted = [chain.generate(PROMPT, max_tokens=count, ignore_eos=True) for count in (4, 80, 4)]
        wanted += chain.generate_batch([PROMPT, PROMPT[:3], PROMPT[::-1]], max_tokens=12)
    assert [list(map(int, line.split())) for line in done.stdout.splitlines()] == wanted
