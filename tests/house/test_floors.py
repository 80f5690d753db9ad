"""Imports go down only: the table of floors, held against every import in the tree, inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    {"exporter", "exporter.errors", "exporter.logs", "exporter.options", "exporter.progress", "exporter.bars", "exporter.onnx_files"},
    {"exporter.plan"},
    {"exporter.ops", "exporter.checkpoint"},
    {"exporter.models", "exporter.trace", "exporter.graph", "exporter.lowering"},
    {"exporter.plan_report", "exporter.commands"},
    {"engines"},
    {"calibration"},
)
"""From the ground up; modules of one floor may know each other."""
ROOF = {"exporter.cli", "exporter.__main__"}
"""Free to name every floor."""


def files() -> list[Path]:
    return [path for folder in ("exporter", "engines", "calibration") for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports, by its full name, wherever in the file."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            # `from . import files` names a module, `from .files import dump` a name within one.
            yield from (f"{origin}.{alias.name}" if _is_module(f"{origin}.{alias.name}") else origin for alias in node.names)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def floor_of(module: str) -> int | None:
    """The floor of a module of ours, by its longest known prefix; None for other people's."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for floor, names in enumerate(FLOORS):
            if name in names and (name != "exporter" or length == len(parts)):
                return floor
    if parts[0] == "exporter":
        raise AssertionError(f"{module} is on no floor; give it one in FLOORS.")
    return None


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_go_down_only(path):
    module = module_of(path)
    if module in ROOF:
        return
    for name in imports(path):
        assert name not in ROOF, f"{module} imports {name}: nothing is above the roof"
        floor = floor_of(name)
        assert floor is None or floor <= floor_of(module), f"{module} imports {name}, which is above it"


def test_plans_need_the_standard_library_alone():
    for path in sorted((ROOT / "exporter/plan").glob("*.py")):
        for name in imports(path):
            ours = name.startswith("exporter.plan") or name == "exporter.errors"
            assert ours or name.partition(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_engines_do_not_reach_into_tracing_and_assembly():
    for path in sorted((ROOT / "engines").rglob("*.py")):
        for name in imports(path):
            assert not name.startswith(("exporter.graph", "exporter.trace", "exporter.ops")), f"{path} imports {name}"


def test_commands_files_import_nothing_heavy_at_the_top():
    heavy = {"torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "ml_dtypes", "safetensors", "transformers", "tokenizers", "tensorrt", "numpy", "rich"}
    for path in files():
        if path.name in ("commands.py", "cli.py", "logs.py", "options.py", "progress.py", "__init__.py"):
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name if isinstance(node, ast.Import) else node.module or "" for node in top for alias in node.names if not getattr(node, "level", 0)}
            assert not {name.partition(".")[0] for name in names} & heavy, path
