"""Safetensors files written as a stream: the header first, since all sizes are known before a byte is read."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import BinaryIO, TypeVar

from ..plan.manifest import FileStamp
from .layout import ITEM_BYTES

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
