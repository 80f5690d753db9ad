"""Safetensors files written as a stream: the header first, since all sizes are known before a byte is read."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..plan.files import whole_file
from ..plan.manifest import FileStamp
from .layout import ITEM_BYTES, Layout, layout

if TYPE_CHECKING:
    import numpy as np

ORDER = ("U8", "I8", "F8_E4M3", "F16", "BF16", "F32", "I64")
"""Dtypes as safetensors ranks them; its writer begins with the last."""
ALIGNMENT = 8
"""Data begins at a multiple of this; the header is padded with spaces."""

Tensor = TypeVar("Tensor")


def in_file_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Things with a ``name`` and a ``dtype`` in the order in which safetensors' own writer puts them."""
    return sorted(tensors, key=lambda tensor: (-ORDER.index(tensor.dtype), tensor.name))


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """First bytes of a file of ``(name, dtype, shape)`` in file order: what ``safetensors.torch.save_file`` writes, byte for byte."""
    table, position = {}, 0
    for name, dtype, shape in tensors:
        size = prod(shape) * ITEM_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class Hashing:
    """A file whose sha256 is computed beside the writing: hashing and writing take about as long."""

    def __init__(self, file: BinaryIO, worker: ThreadPoolExecutor) -> None:
        self.file, self.worker = file, worker
        self.sha256, self.position, self.pending = hashlib.sha256(), 0, None

    def write(self, data: bytes | memoryview) -> None:
        if self.pending:
            self.pending.result()
        self.pending = self.worker.submit(self.sha256.update, data)
        self.file.write(data)
        self.position += len(data)

    def pad_to(self, position: int) -> None:
        if position > self.position:
            self.write(bytes(position - self.position))

    def stamp(self) -> FileStamp:
        if self.pending:
            self.pending.result()
        return FileStamp(self.position, self.sha256.hexdigest())


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], "Iterator[np.ndarray]"]
    source_bytes: int = 0
    """Size of the float tensor that is read for it: what progress counts."""


def layout_of(entries: list[Entry]) -> Layout:
    return layout((entry.name, entry.dtype, entry.shape) for entry in entries)


def bytes_of(entry: Entry) -> int:
    from math import prod

    return prod(entry.shape) * ITEM_BYTES[entry.dtype]


def write_entries(path: Path, entries: list[Entry], placed: Layout, advance: Callable[[int], Any] = lambda count: None) -> FileStamp:
    """Write ``path`` whole and say what it is.

    :param advance: called with the bytes of the float tensors as their quantised ones are written.
    """
    with whole_file(path) as file, ThreadPoolExecutor(1) as worker:
        hashing = Hashing(file, worker)
        hashing.write(placed.header)
        for entry, place in zip(entries, placed.tensors, strict=True):
            hashing.pad_to(place.offset)
            for piece in entry.pieces():
                hashing.write(piece.reshape(-1).view("uint8").data)
                advance(entry.source_bytes * piece.nbytes // place.bytes)
        hashing.pad_to(placed.total_bytes)
        return hashing.stamp()
