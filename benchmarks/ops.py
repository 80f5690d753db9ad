"""Where our kernels for CPUs are, for the benchmarks that take them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = "libmoetrt-ops.so"
MISSING = "our kernels for CPUs are not built: make ops"


def library() -> Path | None:
    """What `make ops`, or `make cpp`, has built."""
    return next((path for folder in ("ops", "cpp") if (path := ROOT / "build" / folder / LIBRARY).is_file()), None)
