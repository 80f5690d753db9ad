"""Weights in the order of our own kernels for CPUs: panels of 16 outputs (``engines/cpp/ops/packed.hpp``).

Each function gives a tensor in pieces along its first axis, as :class:`~.rewrite.Derived` wants it. A matrix is an expert alone.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from .rewrite import Derived

OPS_VERSION = "2"
"""Of the ops and of this order: ``kVersion`` in engines/cpp/ops/library.cpp is the same."""
LANES = 16
"""Outputs of a panel."""
GROUP = 4
"""Inputs that lie side by side."""
TILE = 64
"""Inputs are filled up to a multiple of so many."""
PIECE = 1 << 22
"""Values of a matrix of floats that are put in order at a time."""
PANELS = ".panels"
"""How tensors are called that were put in this order: after what they are made of."""


def filled(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def derived_panels(weight: str, shape: tuple[int, ...], bits: int, paired: bool = False) -> Derived:
    """``weight`` in panels.

    :param shape: of the stored values, ``(…, inputs, outputs)``.
    :param paired: outputs are interleaved gates and ups: sixteen gates become a panel, and their ups the next.
    """
    panels, size = filled(shape[-1], LANES) // LANES, filled(shape[-2], TILE) * LANES * bits // 8
    return Derived(weight + PANELS, "U8", (*shape[:-2], panels, size), (weight,), partial(_values, bits=bits, paired=paired))


def derived_panel_scales(scale: str, shape: tuple[int, ...], bits: int, paired: bool = False) -> Derived:
    """``scale``, ``(…, blocks, outputs)``, panel by panel in float32, or in bfloat16 where that is what all of them are.

    :param shape: of the stored scales; those of one matrix, one for each output, may have no axis for blocks.
    """
    full = shape if len(shape) > 1 else (1, *shape)
    panels = filled(full[-1], LANES) // LANES
    return Derived(scale + PANELS, {32: "F32", 16: "BF16"}[bits], (*full[:-2], panels, full[-2], LANES), (scale,), partial(_scales, bits=bits, paired=paired))


def derived_floats(weight: str, shape: tuple[int, ...], bits: int, paired: bool = False, rows: bool = False) -> Derived:
    """float32 ``weight`` in panels, as float32 or, where that is what all of it is, as bfloat16.

    :param shape: of the stored values, ``(…, inputs, outputs)``.
    :param rows: the stored values are ``(…, outputs, inputs)``.
    """
    *lead, inputs, outputs = (*shape[:-2], *shape[:-3:-1]) if rows else shape
    size = filled(inputs, 2) * LANES * bits // 8
    return Derived(weight + PANELS, "U8", (*lead, filled(outputs, LANES) // LANES, size), (weight,), partial(_floats, bits=bits, paired=paired, rows=rows))


def _values(values: np.ndarray, bits: int, paired: bool) -> Iterator[np.ndarray]:
    for one in values if values.ndim == 3 else values[None]:
        unsigned = nibbles(one) ^ np.uint8(8) if bits == 4 else one.view(np.uint8) ^ np.uint8(128)
        inputs, outputs = unsigned.shape
        room = np.full((filled(inputs, TILE), filled(outputs, LANES)), 8 if bits == 4 else 128, np.uint8)
        room[:inputs, :outputs] = _halves(unsigned) if paired else unsigned
        groups = np.ascontiguousarray(room.reshape(-1, GROUP, room.shape[1] // LANES, LANES).transpose(2, 0, 3, 1))
        packed = groups[:, 0::2] | (groups[:, 1::2] << 4) if bits == 4 else groups
        yield packed.reshape(len(groups), -1)


def _scales(values: np.ndarray, bits: int, paired: bool) -> Iterator[np.ndarray]:
    import ml_dtypes

    for one in values if values.ndim == 3 else values.reshape(1, -1, values.shape[-1]):
        blocks, outputs = one.shape
        room = np.zeros((blocks, filled(outputs, LANES)), np.float32)
        room[:, :outputs] = _halves(one) if paired else one
        made = np.ascontiguousarray(room.reshape(blocks, -1, LANES).transpose(1, 0, 2))
        yield _bits_of_bfloat16(made).view(ml_dtypes.bfloat16) if bits == 16 else made


def nibbles(pairs: np.ndarray) -> np.ndarray:
    """4-bit values, one in a byte. :param pairs: two outputs in a byte. *Shape:* uint8 ``(inputs, outputs / 2)``"""
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)


def _floats(values: np.ndarray, bits: int, paired: bool, rows: bool) -> Iterator[np.ndarray]:
    for one in values if values.ndim == 3 else values[None]:
        inputs, outputs = one.shape[::-1] if rows else one.shape
        step = max(PIECE // inputs // (2 * LANES), 1) * 2 * LANES
        for first in range(0, outputs, step):
            part = one[first : first + step].T if rows else one[:, first : first + step]
            room = np.zeros((filled(inputs, 2), filled(part.shape[1], LANES)), np.float32)
            room[:inputs, : part.shape[1]] = _halves(np.ascontiguousarray(part)) if paired else part
            yield _panels_of(room, bits).reshape(room.shape[1] // LANES, -1).view(np.uint8)


def _panels_of(room: np.ndarray, bits: int) -> np.ndarray:
    """:param room: *Shape:* float32 ``(inputs, outputs)``"""
    if bits == 32:
        return np.ascontiguousarray(room.reshape(len(room), -1, LANES).transpose(1, 0, 2))
    return np.ascontiguousarray(_bits_of_bfloat16(room).reshape(len(room) // 2, 2, -1, LANES).transpose(2, 0, 3, 1))


def _bits_of_bfloat16(floats: np.ndarray) -> np.ndarray:
    """The bits of float32 values that bfloat16 has, where that is all they have."""
    assert not (floats.view(np.uint32) & 0xFFFF).any(), "values have more in them than bfloat16 holds"
    return (floats.view(np.uint32) >> 16).astype(np.uint16)


def _halves(interleaved: np.ndarray) -> np.ndarray:
    """Columns g0, u0, g1, u1, … as sixteen gates, their sixteen ups, …."""
    return interleaved.reshape(len(interleaved), -1, LANES, 2).transpose(0, 1, 3, 2).reshape(interleaved.shape)
