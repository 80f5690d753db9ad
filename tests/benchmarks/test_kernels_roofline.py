"""What the kernels' benchmark takes for the least that a GPU must do, and its plan without one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from kernels import expected, work_of  # noqa: E402  (beside the others)


def test_one_token_on_one_expert_reads_its_three_matrices() -> None:
    work = work_of(1, rows=1, active=1, weight_bytes=1, hidden=64, width=32)
    assert work.bytes == 3 * 64 * 32 + 2 * 64 * 2
    assert work.operations == 2 * 3 * 64 * 32


def test_the_longer_of_reading_and_computing_bounds_the_time() -> None:
    work = work_of(4096, rows=2048, active=16, weight_bytes=1)
    assert work.least_seconds(1e30, 1e12) == work.operations / 1e12
    assert work.least_seconds(1e9, 1e30) == work.bytes / 1e9


def test_many_tokens_reach_every_expert() -> None:
    assert expected(1, 16) == (0, 0)
    assert expected(4096, 16) == (2048, 16)


def test_the_plan_is_told_without_a_gpu() -> None:
    if not (ROOT / "build/cpp/libmoetrt-kernels-emulated.so").is_file():
        pytest.skip("the kernels are not built (make cpp)")
    done = subprocess.run([sys.executable, "benchmarks/kernels.py", "--plan", "--tokens", "1", "4096"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiles of 16 rows" in done.stdout
    assert "tiles of 128 rows" in done.stdout
