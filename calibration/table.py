"""What calibration saw: ranges of activations by the name of the weight that they meet, under no particular plan."""

from pathlib import Path

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan.evidence import ExpertRanges, Range, Table

__all__ = ["LEVELS", "ExpertRanges", "Range", "Table", "read_table"]

LEVELS = 127
"""Steps from zero to the largest magnitude of symmetric INT8: scale = range / 127."""


def read_table(path: Path) -> Table:
    """:raises LoadError: absent, damaged, or no calibration table."""
    if not path.is_file():
        raise LoadError(f"{path} is no calibration table.", hint="Make one with `moetrt calibrate GRAPHS --prompts FILE --output FILE`.")
    return files.read_record(Table, path)
