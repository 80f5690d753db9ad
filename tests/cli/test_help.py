"""The command line explains itself."""

import importlib.util
import re

import pytest

from exporter.cli import COMMANDS

# A command whose floor is not built yet has no module; its line in the table waits for it.
PRESENT = [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.target.partition(":")[0])]


def test_help_lists_every_command(moetrt):
    outcome = moetrt("--help")
    assert outcome.code == 0
    assert all(re.search(rf"^  {name} ", outcome.out, re.M) for name in COMMANDS)


def test_version(moetrt):
    assert re.fullmatch(r"moetrt, version \d+\.\d+\.\d+\n", moetrt("--version").out)


@pytest.mark.parametrize("name", PRESENT)
def test_every_command_explains_its_options(moetrt, name):
    outcome = moetrt(name, "--help")
    assert outcome.code == 0
    assert f"Usage: moetrt {name}" in outcome.out
    # An option without help is a line that ends with its metavar or type.
    assert not re.search(r"^  (-\w, )?--[\w-]+( [A-Z.]+)?$\n  -", outcome.out, re.M)


def test_an_unknown_command_lists_the_known_ones(moetrt):
    outcome = moetrt("quantise")
    assert outcome.code == 2
    assert "known are plan, convert" in outcome.err


def test_no_command_at_all_shows_the_help(moetrt):
    outcome = moetrt()
    assert outcome.code == 2
    assert "Usage: moetrt" in outcome.out + outcome.err
