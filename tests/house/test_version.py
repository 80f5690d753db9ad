"""One version for the packages, the C++ library and the example that asks for it (SameMinorVersion: 0.2 does not find 0.3)."""

import re
from pathlib import Path

import exporter

ROOT = Path(__file__).parents[2]


def said(file: str, words: str) -> str:
    """The one version that ``words``, a regular expression, finds in ``file``."""
    (version,) = re.findall(words, (ROOT / file).read_text())
    return version


def test_every_place_says_the_same_version():
    assert said("engines/cpp/CMakeLists.txt", r"project\(moetrt VERSION (\S+)") == exporter.__version__
    assert said("examples/cpp/CMakeLists.txt", r"find_package\(moetrt (\S+)") == exporter.__version__.rpartition(".")[0]
    assert "exporter.__version__" in (ROOT / "setup.cfg").read_text()
