"""What figures were measured on: they mean nothing without it."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from exporter import __version__


def cpu() -> str:
    """The CPU's name and how many cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions(packages: Iterable[str] = ("numpy", "onnxruntime")) -> dict[str, str]:
    """Versions of moetrt, Python and those of ``packages`` that are installed."""
    found = {"moetrt": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    return datetime.date.today().isoformat()
