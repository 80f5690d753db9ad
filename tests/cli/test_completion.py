"""Shell completion knows commands, options and choices, and imports no command to offer their names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import COMMANDS

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
ASK = """
PATH={folder}:$PATH
eval "$(_MOETRT_COMPLETE=bash_source moetrt)"
COMP_WORDS=({words}) COMP_CWORD={position} COMPREPLY=()
_moetrt_completion moetrt
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def complete(tmp_path):
    """``complete("moetrt", "bu")``: what bash would offer for the last word."""
    if not BASH:
        pytest.skip("there is no bash here")
    (tmp_path / "moetrt").write_text(f'#!/bin/sh\nexec {sys.executable} -m exporter "$@"\n')
    (tmp_path / "moetrt").chmod(0o755)

    def ask(*words: str) -> list[str]:
        script = ASK.format(folder=tmp_path, words=" ".join(word or "''" for word in words), position=len(words) - 1)
        ran = subprocess.run([BASH, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert not ran.stderr
        return ran.stdout.split()

    return ask


def test_commands_are_offered_by_name(complete):
    assert complete("moetrt", "") == list(COMMANDS)
    assert complete("moetrt", "b") == ["build", "bench"]
    assert complete("moetrt", "-v", "do") == ["doctor"]


def test_options_and_their_choices_are_offered(complete):
    assert complete("moetrt", "build", "--ba") == ["--backend"]
    assert complete("moetrt", "build", "--backend", "tensorrt") == ["tensorrt", "tensorrt-rtx"]
    assert complete("moetrt", "build", "--verb") == ["--verbose"]
    assert complete("moetrt", "--ver") == ["--version", "--verbose"]


def test_offering_commands_imports_none():
    code = "import sys; from exporter.cli import cli; import click; names = cli.shell_complete(click.Context(cli), ''); print(len(names), 'engines' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.split() == [str(len(COMMANDS)), "False"]
