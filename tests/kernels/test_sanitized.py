"""The emulated kernels once more under the address and undefined-behaviour sanitizers: arrays there are of exactly the size that kernels may touch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/cpp-sanitized"
TESTS = "emulated and (plain_loops or routes or (every_tiling and static))"


def runtime_of_gcc(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(
    not (FOLDER / "libmoetrt-kernels-emulated.so").is_file(),
    reason="the sanitized build is not there (make cpp-sanitized)",
)
def test_kernels_touch_no_more_than_their_arrays() -> None:
    """Leaks are Python's own and not looked for."""
    # The C++ library must be there before the sanitizer looks for what it watches in it.
    preload = f"{runtime_of_gcc('libasan.so')} {runtime_of_gcc('libstdc++.so.6')}"
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "MOETRT_KERNELS": str(FOLDER),
    }
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "--capture=no",
        "tests/kernels/test_kernels.py",
        "-k",
        TESTS,
    ]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "failed" not in done.stdout
    assert "skipped" not in done.stdout
