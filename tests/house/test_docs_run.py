"""The code on docs/adding.md runs as it stands, block after block in one namespace."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_code_blocks_of_adding_run(tmp_path, monkeypatch):
    from calibration.observers import METHODS
    from exporter.models import FAMILIES

    shutil.copytree(ROOT / "tests/data", tmp_path / "tests/data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("exporter.models.FAMILIES", dict(FAMILIES))
    monkeypatch.setattr("calibration.observers.METHODS", dict(METHODS))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "docs/adding.md", "exec"), namespace)


def test_readme_stays_under_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_module_is_listed_in_the_architectures_tree():
    tree = (ROOT / "docs/architecture.md").read_text().split("## The tree")[1]
    for package in ("exporter", "engines", "calibration"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                assert re.search(rf"\b{path.stem}\b", tree), f"{path.relative_to(ROOT)} is not in docs/architecture.md"


def test_no_file_is_two_ideas_long():
    """A budget for reading: the whole tool in a day."""
    for package in ("exporter", "engines", "calibration"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 450, path


def test_no_two_files_of_tests_share_a_name():
    """pytest imports them by that alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
