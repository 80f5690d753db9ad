"""Help and plans need the standard library, click and nothing heavier."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PRESENT = [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.target.partition(":")[0])]
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "ml_dtypes", "safetensors", "transformers", "tokenizers", "jinja2", "tensorrt", "tensorrt_rtx")
"""None of these is in install_requires."""
BARE = """
import sys
HEAVY = sys.argv.pop(1).split(",")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from exporter.cli import main
main()
"""


def bare(*arguments: object, absent: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess:
    """A command line where no heavy library is installed."""
    return subprocess.run([sys.executable, "-c", BARE, ",".join(absent), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in PRESENT)], ids=" ".join)
def test_help_needs_nothing_heavy(arguments):
    outcome = bare(*arguments)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"]], ids=" ".join)
def test_what_draws_progress_is_imported_only_to_draw(arguments):
    assert bare(*arguments, absent=(*HEAVY, "rich")).returncode == 0


@pytest.mark.parametrize("model", ["tests/data/deepseek-v3", "examples/tiny-v3"])
def test_plan_needs_nothing_heavy(model):
    outcome = bare("plan", model, "--tensor", 2, "--json", absent=(*HEAVY, "numpy", "rich"))
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["legal"]


def test_inspect_needs_nothing_heavy():
    outcome = bare("inspect", "examples/tiny-v3", "--verify")
    assert outcome.returncode == 0, outcome.stderr
    assert "fingerprint" in outcome.stdout


def test_what_does_need_a_library_says_how_to_get_it(tmp_path):
    outcome = bare("convert", "examples/tiny-v3", "--output", tmp_path / "made", "--dtype", "fp32")
    assert outcome.returncode == 1
    assert "pip install 'moetrt[" in outcome.stderr
