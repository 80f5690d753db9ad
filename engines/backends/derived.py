"""Weights in the order that a backend's kernels want, as a file of their own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint.layout import Placed
from exporter.checkpoint.reader import stored_array
from exporter.checkpoint.writer import Entry, bytes_of, layout_of, write_entries
from exporter.lowering import Derived
from exporter.plan.manifest import FileStamp

if TYPE_CHECKING:
    import numpy as np
    import onnx

LOOKED_AT = 1 << 24
"""Bytes of a tensor that are looked at before the rest is."""
DERIVED = "lowered.safetensors"
"""The file's name, beside the graphs that refer to it."""


def write_derived(
    weights: Path, target: Path, derived: dict[str, Derived], progress: Callable[[float], None] = lambda part: None
) -> tuple[dict[str, Placed], FileStamp]:
    """Make the tensors that kernels want in another order, an expert at a time. :returns: their places in ``target``, and its stamp."""
    entries = [Entry(one.name, one.dtype, one.shape, partial(_pieces, weights, one)) for one in derived.values()]
    entries = [replace(entry, source_bytes=bytes_of(entry)) for entry in entries]
    placed, total, done = layout_of(entries), sum(entry.source_bytes for entry in entries), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / total)

    stamp = write_entries(target, entries, placed, advance)
    return {place.name: place for place in placed.tensors}, stamp


def _pieces(weights: Path, made: Derived) -> "Iterator[np.ndarray]":
    return made.make(*(stored_array(weights, name) for name in made.sources))


def is_bfloat16(weights: Path, name: str) -> bool:
    """Whether a stored float32 tensor has nothing in the halves that bfloat16 lacks. It is read, unless its beginning tells."""
    halves = stored_array(weights, name).reshape(-1).view("<u2")[::2]
    return not any(halves[first : first + LOOKED_AT // 4].any() for first in range(0, len(halves), LOOKED_AT // 4))


def refer(model: "onnx.ModelProto", places: dict[str, Placed]) -> None:
    """Let a model's placeholders be the tensors of ``DERIVED``."""
    for tensor in model.graph.initializer:
        if tensor.name in places:
            places[tensor.name].refer(tensor, DERIVED)
