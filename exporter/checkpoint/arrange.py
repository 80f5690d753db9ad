"""Checkpoint tensors become stored ones, in pieces of bounded size: sliced, transposed, stacked, cast."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import ExportError
from ..plan.parallel import Range
from .fp8 import to_float32

if TYPE_CHECKING:
    import numpy as np

    from .reader import Checkpoint

Arrange = Literal["rows", "transpose", "key_up", "value_up", "interleave", "stack", "cosine", "sine"]
"""How sources become the stored tensor."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a weights file."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    arrange: Arrange
    sources: tuple[str, ...] = ()
    """Checkpoint tensors that it is made of, by their Hugging Face names."""
    rows: Range | None = None
    """Rows of the source that this rank takes; None for all."""
    columns: Range | None = None


PIECE_BYTES = 32 << 20
"""Aim for the size of one piece: what is held in memory at a time."""


def scale_blocks(values: "np.ndarray", scales: "np.ndarray", rows: Range, columns: Range, block: int) -> "np.ndarray":
    """Multiply a sub-matrix by the grid of ``block × block`` scales of its whole, in place.

    :param values: float32 ``(rows, columns)``
    :param scales: float32, of the whole matrix.
    """
    import numpy as np

    column = np.arange(columns.start, columns.stop) // block
    row = rows.start
    while row < rows.stop:
        stop = min((row // block + 1) * block, rows.stop)
        values[row - rows.start : stop - rows.start] *= scales[row // block][column]
        row = stop
    return values


def turned(values: "np.ndarray") -> "np.ndarray":
    """The transpose, C-contiguous: by torch, whose blocked copy is some five times as fast as numpy's."""
    import torch

    bits = values.view({2: "int16", 4: "int32"}[values.itemsize])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checkpoint is mapped read-only, and nothing is written to it
        return torch.from_numpy(bits).T.contiguous().numpy().view(values.dtype)


class Source:
    """Blocks of a checkpoint's tensors as numbers; FP8 is dequantised in float32 and rounded once to bfloat16.

    :param block: edge of the FP8 scale blocks.
    """

    def __init__(self, checkpoint: "Checkpoint", block: int | None) -> None:
        self.checkpoint, self.block = checkpoint, block

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.checkpoint.headers[name].shape)

    def read(self, name: str, rows: Range | None = None, columns: Range | None = None) -> "np.ndarray":
        """A block of ``name``; everything where no range is given. Vectors have rows only."""
        view = self._view(name)
        rows, columns = rows or Range(0, view.shape[0]), columns or (Range(0, view.shape[1]) if view.ndim == 2 else None)
        part = view[rows.start : rows.stop] if columns is None else view[rows.start : rows.stop, columns.start : columns.stop]
        return self._dequantise(name, part, rows, columns) if self.checkpoint.headers[name].dtype == "F8_E4M3" else part

    def _view(self, name: str) -> "np.ndarray":
        import ml_dtypes
        import numpy as np

        info = self.checkpoint.headers[name]
        dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
        return np.memmap(info.file, dtypes[info.dtype], "r", info.offset, tuple(info.shape))

    def _dequantise(self, name: str, part: "np.ndarray", rows: Range, columns: Range) -> "np.ndarray":
        import ml_dtypes
        import numpy as np

        scales = self._view(name.replace(".weight", ".weight_scale_inv"))
        return scale_blocks(to_float32(part.view(np.uint8)), scales, rows, columns, self.block).astype(ml_dtypes.bfloat16)


def pieces(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    """The stored tensor's values in file order, as C-contiguous arrays of its dtype.

    :param split: widths of a head's key and value parts (nope, value), for the two halves of ``kv_b``.
    """
    for piece in ARRANGE[tensor.arrange](tensor, source, split):
        yield cast(piece, tensor.dtype, tensor.name)


def _rows(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    (name,), shape = tensor.sources, source.shape(tensor.sources[0])
    whole = tensor.rows or Range(0, shape[0])
    for rows in _steps(whole, shape[-1] if len(shape) == 2 else 1):
        yield source.read(name, rows, tensor.columns)


def _transpose(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    (name,), shape = tensor.sources, source.shape(tensor.sources[0])
    for columns in _steps(tensor.columns or Range(0, shape[1]), len(tensor.rows or range(shape[0]))):
        yield turned(source.read(name, tensor.rows, columns))


def _key_up(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    nope, value = split
    for start in range(tensor.rows.start, tensor.rows.stop, nope + value):
        yield source.read(tensor.sources[0], Range(start, start + nope))


def _value_up(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    nope, value = split
    for start in range(tensor.rows.start, tensor.rows.stop, nope + value):
        yield turned(source.read(tensor.sources[0], Range(start + nope, start + nope + value)))


def _interleave(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    import numpy as np

    for gate, up in zip(tensor.sources[::2], tensor.sources[1::2], strict=True):
        yield np.stack([source.read(gate), source.read(up)], axis=1)


def _stack(tensor: Stored, source: Source, split: tuple[int, int]) -> Iterator["np.ndarray"]:
    for name in tensor.sources:
        yield source.read(name)


ARRANGE = {"rows": _rows, "transpose": _transpose, "key_up": _key_up, "value_up": _value_up, "interleave": _interleave, "stack": _stack}


def _steps(whole: Range, width: int) -> Iterator[Range]:
    """``whole`` in pieces whose float32 values take about ``PIECE_BYTES``; multiples of 128, so no FP8 block is read twice."""
    step = max(128, PIECE_BYTES // (4 * max(width, 1)) // 128 * 128)
    for start in range(whole.start, whole.stop, step):
        yield Range(start, min(start + step, whole.stop))


def cast(values: "np.ndarray", dtype: str, name: str) -> "np.ndarray":
    """The values in a safetensors dtype, C-contiguous.

    :raises ExportError: a finite value is beyond float16's range.
    """
    import ml_dtypes
    import numpy as np

    target = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}[dtype]
    if values.dtype == target:
        return np.ascontiguousarray(values)
    if values.dtype == ml_dtypes.bfloat16:
        # bfloat16 is the upper half of float32; shifting is several times faster than a converting copy.
        values = np.left_shift(values.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(values.astype(target, copy=False))
    if dtype == "F16" and not np.isfinite(made).all():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise ExportError(f"{name} has values up to {largest:.4g}, beyond float16's 65504.", hint="Choose --precision bf16 or fp32.")
    return made
