"""The benchmark of long contexts runs: short ones, two ranks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_of_long_contexts_runs(tmp_path):
    done = subprocess.run([sys.executable, "benchmarks/long_context.py", "--lengths", "100,300", "--tensor", "2", "--work", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout.splitlines()
    assert (tmp_path / "lengths.html").is_file()
