"""TensorRT's session in C++: compiled against TensorRT's headers, its calls checked against libraries that stand for TensorRT's, CUDA's and NCCL's, threads watched.

``TENSORRT_ROOT`` names a TensorRT of one's own; else headers of 10.14 are fetched, with which ranks meet through a function of the tests.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build"

pytestmark = pytest.mark.skipif(not (BUILDS / "cpp/moetrt-run").is_file(), reason="the C++ runtime is not built (make cpp)")


def call(*words):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def headers():
    if "TENSORRT_ROOT" in os.environ:
        return Path(os.environ["TENSORRT_ROOT"])
    done = call(ROOT / "engines/cpp/tensorrt-headers.sh", BUILDS / "tensorrt-headers")
    if done.returncode:
        pytest.skip(f"TensorRT's headers cannot be had: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return BUILDS / "tensorrt-headers"


@pytest.fixture(scope="module")
def built(headers):
    """The session and its tests, compiled with the thread sanitizer."""
    cache = (BUILDS / "cpp/CMakeCache.txt").read_text().splitlines()
    include = next(line.partition("=")[2] for line in cache if line.startswith("MOETRT_HEADERS:"))
    folder = BUILDS / "cpp-tensorrt"
    for words in (
        ["cmake", "-S", ROOT / "engines/cpp", "-B", folder, f"-DMOETRT_INCLUDE={include}", f"-DTENSORRT_ROOT={headers}", "-DMOETRT_CUDA=OFF", "-DMOETRT_SANITIZE=thread"],
        ["cmake", "--build", folder, "--parallel", "2", "--target", "moetrt-tensorrt-tests"],
    ):
        done = call(*words)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return folder


def test_it_compiles_and_asks_of_tensorrt_what_it_should(built):
    done = call("ctest", "--test-dir", built, "--output-on-failure", "-R", "moetrt-tensorrt-tests")
    assert done.returncode == 0, done.stdout[-6000:]


def test_without_tensorrts_library_engines_are_refused(engines, tmp_path):
    """So a build with TensorRT starts where there is none, and runs what else it can."""
    if "TENSORRT_HEADERS:" not in (BUILDS / "cpp/CMakeCache.txt").read_text():
        pytest.skip("the C++ runtime was built without TensorRT's headers")
    folder = Path(shutil.copytree(engines("v3", 1), tmp_path / "engines"))
    path = folder / "rank-00/manifest.json"
    path.write_text(path.read_text().replace('"backend": "ort"', '"backend": "tensorrt"'))
    done = call(BUILDS / "cpp/moetrt-run", folder, "--token-ids", "1,2")
    assert done.returncode == 1
    assert "a CUDA device each; there are 0 here" in done.stderr
