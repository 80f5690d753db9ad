"""A rank's weights file again, with INT8 matrices and their scales: streamed, a piece of a tensor at a time."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.arrange import PIECE_BYTES, cast
from exporter.checkpoint.layout import ITEM_BYTES, Layout, layout
from exporter.checkpoint.reader import TensorInfo, read_header
from exporter.checkpoint.writer import Hashing
from exporter.plan.files import whole_file
from exporter.plan.manifest import FileStamp

from .collect import stored_array
from .table import LEVELS

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], "Iterator[np.ndarray]"]


@dataclass
class Weights:
    """A rank's float weights, smoothed on the way where factors are given."""

    path: Path
    factors: "dict[str, np.ndarray]" = field(default_factory=dict)
    """Weight → what its input channels are multiplied by; a norm's are divided by its own."""

    def __post_init__(self) -> None:
        self.infos: dict[str, TensorInfo] = {name: info for name, info in read_header(self.path).items() if not name.startswith("__pad.")}

    def blocks(self, name: str) -> "Iterator[np.ndarray]":
        """The tensor as float32, along its first axis, in pieces of bounded size; a stack of experts one by one."""
        import numpy as np

        array, factor = stored_array(self.path, name), self.factors.get(name)
        rows = max(1, PIECE_BYTES // (4 * max(1, array.size // max(1, len(array)))))
        for begin in range(0, len(array), rows):
            part = array[begin : begin + rows].astype(np.float32)
            if factor is not None:
                part = part * (factor if array.ndim != 2 else factor[begin : begin + rows, None])
            yield part

    def input_maxima(self, name: str) -> "np.ndarray":
        """Largest magnitude that each input channel meets. *Shape:* ``(inputs)``"""
        import numpy as np

        if len(self.infos[name].shape) == 3:
            return np.max([np.abs(block).max(axis=(0, 1)) for block in self.blocks(name)], axis=0)
        return np.concatenate([np.abs(block).max(axis=1) for block in self.blocks(name)])


@dataclass
class Error:
    """Squares summed over a tensor: what quantising it lost."""

    lost: float = 0.0
    whole: float = 0.0

    @property
    def relative(self) -> float:
        return (self.lost / self.whole) ** 0.5 if self.whole else 0.0


def scales_of(maxima: "np.ndarray", dtype: str) -> "np.ndarray":
    """maximum / 127, rounded to the dtype that it is stored in; 1 for a channel of zeros."""
    import numpy as np

    scales = cast(np.where(maxima > 0, maxima / np.float32(LEVELS), np.float32(1)).astype(np.float32), dtype, "a scale")
    return np.where(scales.astype(np.float32) > 0, scales, np.ones((), scales.dtype))


def quantise(values: "np.ndarray", scales: "np.ndarray") -> "np.ndarray":
    """Round to nearest even, saturate at ±127: int8."""
    import numpy as np

    return np.clip(np.rint(values / scales), -LEVELS, LEVELS).astype(np.int8)


def quantised_entries(weights: Weights, name: str, dtype: str, error: Error) -> Iterator[Entry]:
    """A matrix ``[in, out]`` as INT8 with ``{name}.scale [out]``; experts ``[E, out, in]`` as ``[E, in, out]`` with ``[E, 1, out]``.

    :param error: filled as the tensor is written.
    """
    import numpy as np

    shape, made = weights.infos[name].shape, {}

    def scale() -> "np.ndarray":
        if "scale" not in made:
            if len(shape) == 3:
                maxima = np.concatenate([np.abs(block).max(axis=2) for block in weights.blocks(name)])[:, None, :]
            else:
                maxima = np.max([np.abs(block).max(axis=0) for block in weights.blocks(name)], axis=0)
            made["scale"] = scales_of(maxima, dtype)
        return made["scale"]

    def values() -> "Iterator[np.ndarray]":
        done = 0
        for block in weights.blocks(name):
            if len(shape) == 3:
                block = block.transpose(0, 2, 1)
            scales = scale().astype(np.float32)
            scales = scales[done : done + len(block)] if len(shape) == 3 else scales
            whole = quantise(block, scales)
            error.lost += float(np.square(block - whole * scales).sum(dtype=np.float64))
            error.whole += float(np.square(block).sum(dtype=np.float64))
            done += len(block)
            yield np.ascontiguousarray(whole)

    turned = (shape[0], shape[2], shape[1]) if len(shape) == 3 else tuple(shape)
    yield Entry(name, "I8", turned, values)
    yield Entry(f"{name}.scale", dtype, (shape[0], 1, shape[1]) if len(shape) == 3 else (shape[1],), lambda: iter([scale()]))


def float_entry(weights: Weights, name: str) -> Entry:
    """A tensor as it is, or smoothed."""
    info = weights.infos[name]

    def values() -> "Iterator[np.ndarray]":
        if name in weights.factors:
            yield from (cast(block, info.dtype, name) for block in weights.blocks(name))
        else:
            yield from _raw(weights.path, info)

    return Entry(name, info.dtype, tuple(info.shape), values)


def array_entry(name: str, dtype: str, values: "np.ndarray") -> Entry:
    return Entry(name, dtype, tuple(values.shape), lambda: iter([values]))


def _raw(path: Path, info: TensorInfo) -> "Iterator[np.ndarray]":
    import numpy as np

    data = np.memmap(path, np.uint8, "r", info.offset, (info.bytes,))
    for begin in range(0, info.bytes, PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]


def layout_of(entries: list[Entry]) -> Layout:
    return layout((entry.name, entry.dtype, entry.shape) for entry in entries)


def bytes_of(entry: Entry) -> int:
    from math import prod

    return prod(entry.shape) * ITEM_BYTES[entry.dtype]


def write_entries(path: Path, entries: list[Entry], placed: Layout, advance: Callable[[int], Any]) -> FileStamp:
    """Write ``path`` whole and say what it is.

    :param advance: called with the bytes of each piece as it is written.
    """
    with whole_file(path) as file, ThreadPoolExecutor(1) as worker:
        hashing = Hashing(file, worker)
        hashing.write(placed.header)
        for entry, place in zip(entries, placed.tensors, strict=True):
            hashing.pad_to(place.offset)
            for piece in entry.pieces():
                hashing.write(piece.reshape(-1).view("uint8").data)
                advance(piece.nbytes)
        hashing.pad_to(placed.total_bytes)
        return hashing.stamp()
