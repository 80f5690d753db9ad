"""A rank's weights file again, with INT8 or INT4 matrices and their scales: streamed, a piece of a tensor at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint.arrange import PIECE_BYTES, cast
from exporter.checkpoint.reader import TensorInfo, read_header, stored_array
from exporter.checkpoint.writer import Entry
from exporter.errors import ExportError

from .schemes import QuantScheme

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Weights:
    """A rank's float weights, smoothed on the way where factors are given."""

    path: Path
    factors: "dict[str, np.ndarray]" = field(default_factory=dict)
    """Weight → what its input channels are multiplied by; a norm's are divided by its own."""

    def __post_init__(self) -> None:
        self.infos: dict[str, TensorInfo] = {name: info for name, info in read_header(self.path).items() if not name.startswith("__pad.")}

    def pieces(self, name: str, multiple: int = 1) -> "Iterator[np.ndarray]":
        """The tensor as float32, along its first axis, in pieces of bounded size.

        :param multiple: pieces end on multiples of this many rows.
        """
        import numpy as np

        array, factor = stored_array(self.path, name), self.factors.get(name)
        rows = max(1, PIECE_BYTES // (4 * max(1, array.size // max(1, len(array)))) // multiple) * multiple
        for begin in range(0, len(array), rows):
            part = array[begin : begin + rows].astype(np.float32)
            if factor is not None:
                part = part * (factor if array.ndim != 2 else factor[begin : begin + rows, None])
            yield part

    def input_maxima(self, name: str) -> "np.ndarray":
        """Largest magnitude that each input channel meets. *Shape:* ``(inputs)``"""
        import numpy as np

        if len(self.infos[name].shape) == 3:
            return np.max([np.abs(piece).max(axis=(0, 1)) for piece in self.pieces(name)], axis=0)
        return np.concatenate([np.abs(piece).max(axis=1) for piece in self.pieces(name)])


@dataclass
class Error:
    """Squares summed over a tensor: what quantising it lost."""

    lost: float = 0.0
    whole: float = 0.0

    @property
    def relative(self) -> float:
        return (self.lost / self.whole) ** 0.5 if self.whole else 0.0


def stored_scales(steps: "np.ndarray", dtype: str, short: bool = False) -> "np.ndarray":
    """Steps rounded to the dtype that they are stored in; 1 where there are only zeros.

    :param short: rounded to bfloat16 before, so that 16 bits hold them in every precision.
    """
    import numpy as np

    steps = np.where(steps > 0, steps, np.float32(1)).astype(np.float32)
    scales = cast(cast(steps, "BF16", "a scale") if short else steps, dtype, "a scale")
    return np.where(scales.astype(np.float32) > 0, scales, np.ones((), scales.dtype))


def quantise(values: "np.ndarray", scales: "np.ndarray", scheme: QuantScheme) -> "np.ndarray":
    """Round to nearest even, saturate at the scheme's least and largest value: int8."""
    import numpy as np

    return np.clip(np.rint(values / scales), scheme.lowest, scheme.levels).astype(np.int8)


SHRINKS = (1.0, 0.96, 0.92, 0.875, 0.84, 0.8, 0.76, 0.72)
"""Parts of a block's range that are tried as its 4-bit range: with so few levels, a clipped outlier may cost less than a wide step.
At 7/8 the least value, −8, is what reaches it."""


def block_scales(values: "np.ndarray", scheme: QuantScheme, dtype: str) -> "np.ndarray":
    """The scale of each block of inputs with the least squared error among ``SHRINKS``. Of 4 bits it is one of bfloat16's values, and what least squares make of the
    best one's integers is tried too.

    :param values: *Shape:* float32 ``(…, inputs, outputs)``
    :returns: *Shape:* ``(…, inputs / block, outputs)``
    """
    import numpy as np

    *lead, inputs, outputs = values.shape
    blocks, four = values.reshape(*lead, inputs // scheme.block, scheme.block, outputs), scheme.bits == 4
    maxima = np.abs(blocks).max(axis=-2)
    best, least = None, None

    def consider(steps: "np.ndarray") -> None:
        nonlocal best, least
        scales = stored_scales(steps, dtype, four)
        lost = np.square(blocks - quantise(blocks, wide_of(scales), scheme) * wide_of(scales)).sum(axis=-2)
        best, least = (scales, lost) if best is None else (np.where(lost < least, scales, best), np.minimum(lost, least))

    for part in SHRINKS:
        consider(maxima * np.float32(part) / np.float32(scheme.levels))
    if four:
        consider(fitted(blocks, quantise(blocks, wide_of(best), scheme)))
    return best


def wide_of(scales: "np.ndarray") -> "np.ndarray":
    """In float32, beside the blocks. *Shape:* ``(…, 1, outputs)``"""
    import numpy as np

    return scales.astype(np.float32)[..., None, :]


def fitted(blocks: "np.ndarray", whole: "np.ndarray") -> "np.ndarray":
    """The step of each block that makes the least squared error of these integers; 0 where they are all 0.

    :param whole: what ``blocks`` were rounded to. *Shape of both:* ``(…, block, outputs)``
    """
    import numpy as np

    whole = whole.astype(np.float32)
    return (blocks * whole).sum(axis=-2) / np.maximum(np.square(whole).sum(axis=-2), 1)


def packed(values: "np.ndarray") -> "np.ndarray":
    """Pairs of 4-bit values in a byte, the first in its low half (onnx.proto3, ``TensorProto.raw_data`` of INT4)."""
    import numpy as np

    pairs = values.view(np.uint8).reshape(*values.shape[:-1], -1, 2)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def quantised_entries(weights: Weights, name: str, dtype: str, scheme: QuantScheme, error: Error) -> Iterator[Entry]:
    """A matrix ``[in, out]`` and ``{name}.scale [out]``, or by block ``[in / block, out]``; experts ``[E, out, in]`` as
    ``[E, in, out]`` with ``[E, 1, out]`` or ``[E, in / block, out]``. Of 4 bits, two outputs lie in a byte: ``U8 [in, out / 2]``.

    :param error: filled as the tensor is written.
    :raises ExportError: blocks do not divide the inputs, or bytes the outputs.
    """
    import numpy as np

    shape, block, made = weights.infos[name].shape, scheme.block, {}
    stacked = len(shape) == 3
    inputs, outputs = shape[:0:-1] if stacked else shape
    _require_divisible(name, inputs, outputs, scheme)

    def pieces() -> "Iterator[np.ndarray]":
        found = weights.pieces(name, 1 if stacked else block or 1)
        return (piece.transpose(0, 2, 1) for piece in found) if stacked else found

    def scale() -> "np.ndarray":
        if "scale" not in made:
            if block:
                made["scale"] = np.concatenate([block_scales(piece, scheme, dtype) for piece in pieces()])
            elif stacked:
                made["scale"] = stored_scales(np.concatenate([np.abs(piece).max(axis=1, keepdims=True) for piece in pieces()]) / np.float32(scheme.levels), dtype)
            else:
                made["scale"] = stored_scales(np.max([np.abs(piece).max(axis=0) for piece in pieces()], axis=0) / np.float32(scheme.levels), dtype)
        return made["scale"]

    def values() -> "Iterator[np.ndarray]":
        done = 0
        for piece in pieces():
            # A stack has its scales by expert, a matrix of blocks by row of blocks, any other one row for all.
            many = len(piece) if stacked else len(piece) // block if block else 0
            scales = scale()[done : done + many] if many else scale()
            wide = scales.astype(np.float32)
            wide = wide.repeat(block, axis=-2) if block else wide
            whole = quantise(piece, wide, scheme)
            error.lost += float(np.square(piece - whole * wide).sum(dtype=np.float64))
            error.whole += float(np.square(piece).sum(dtype=np.float64))
            done += many
            whole = np.ascontiguousarray(whole)
            yield packed(whole) if scheme.bits == 4 else whole

    lead = tuple(shape[:1]) if stacked else ()
    kind, width = ("I8", outputs) if scheme.bits == 8 else ("U8", outputs // 2)
    yield Entry(name, kind, (*lead, inputs, width), values, weights.infos[name].bytes)
    rows = (inputs // block,) if block else (1,) * stacked
    yield Entry(f"{name}.scale", dtype, (*lead, *rows, outputs), lambda: iter([scale()]))


def _require_divisible(name: str, inputs: int, outputs: int, scheme: QuantScheme) -> None:
    if scheme.block and inputs % scheme.block:
        raise ExportError(f"{scheme.name} has blocks of {scheme.block} inputs, which do not divide the {inputs} of {name} on a rank.", hint="Choose another --scheme or fewer --tensor ranks.")
    if scheme.bits == 4 and outputs % 2:
        raise ExportError(f"{scheme.name} packs outputs in pairs, and {name} has {outputs}.", hint="Choose an 8-bit --scheme.")


def float_entry(weights: Weights, name: str) -> Entry:
    """A tensor as it is, or smoothed."""
    info = weights.infos[name]

    def values() -> "Iterator[np.ndarray]":
        if name in weights.factors:
            yield from (cast(piece, info.dtype, name) for piece in weights.pieces(name))
        else:
            yield from _raw(weights.path, info)

    return Entry(name, info.dtype, tuple(info.shape), values, info.bytes)


def array_entry(name: str, dtype: str, values: "np.ndarray") -> Entry:
    return Entry(name, dtype, tuple(values.shape), lambda: iter([values]))


def _raw(path: Path, info: TensorInfo) -> "Iterator[np.ndarray]":
    import numpy as np

    data = np.memmap(path, np.uint8, "r", info.offset, (info.bytes,))
    for begin in range(0, info.bytes, PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]
