"""Where each tensor lies in a weights file, known before a byte is written (docs/formats.md, "weights.safetensors")."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

PAGE = 4096
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "I64": 8}


@dataclass(frozen=True)
class Placed:
    """One tensor's place in the file."""

    name: str
    dtype: str
    """As safetensors names it: ``F32``, ``BF16``, …"""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file: what ONNX external data asks for."""
    bytes: int

    def refer(self, tensor: "onnx.TensorProto", location: str) -> None:
        """Make an ONNX initializer refer to these bytes of the file ``location``, beside the graph."""
        Reference(location, self.offset, self.bytes).write(tensor)


@dataclass(frozen=True)
class Reference:
    """Where an ONNX initializer says that its bytes lie."""

    location: str
    """A file beside the graph."""
    offset: int
    bytes: int | None
    """None where it does not say."""

    @classmethod
    def read(cls, tensor: "onnx.TensorProto") -> "Reference | None":
        """None where the initializer holds its bytes itself."""
        told = {entry.key: entry.value for entry in tensor.external_data}
        return cls(told["location"], int(told.get("offset", 0)), int(told["length"]) if told.get("length") else None) if told else None

    def write(self, tensor: "onnx.TensorProto") -> None:
        del tensor.external_data[:]
        for key, value in (("location", self.location), ("offset", self.offset), ("length", self.bytes)):
            tensor.external_data.add(key=key, value=str(value))


@dataclass(frozen=True)
class Layout:
    header: bytes
    """Length prefix, JSON and padding: the file's first bytes."""
    tensors: tuple[Placed, ...]
    total_bytes: int


def layout(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """Page-aligned places for ``(name, dtype, shape)`` in the order given.

    The format forbids gaps, so each gap is a ``U8`` tensor of its own, ``__pad.{n}``.
    """
    entries, position = [], 0
    for number, (name, dtype, shape) in enumerate(tensors):
        size = prod(shape) * ITEM_BYTES[dtype]
        entries.append((name, dtype, shape, position, size))
        position += size
        gap = -position % PAGE
        if gap:
            entries.append((f"__pad.{number}", "U8", (gap,), position, gap))
            position += gap
    header = _header(entries)
    placed = tuple(
        Placed(name, dtype, tuple(shape), len(header) + offset, size) for name, dtype, shape, offset, size in entries if not name.startswith("__pad.")
    )
    return Layout(header, placed, len(header) + position)


def _header(entries: list[tuple[str, str, tuple[int, ...], int, int]]) -> bytes:
    table = {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]} for name, dtype, shape, at, size in entries}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text
