"""Quantised weights in the order of ONNX Runtime's kernels: by rows of outputs, unsigned, with the zero point in the middle.

Each function gives a tensor in pieces along its first axis, as :class:`~.rewrite.Derived` wants it. A matrix is an expert alone.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .panels import PANELS, nibbles
from .rewrite import Derived

BLOCKS = (128, 64, 32)
"""Inputs that share a scale, where a kernel wants blocks and the weights have a scale for all inputs: the largest that divides them."""
ROWS = ".rows"
"""How tensors are called that were put in another order for a kernel: after what they are made of."""
STORED = {"fp32": "F32", "fp16": "F16"}
"""Precisions that kernels take scales in → dtype as safetensors names it."""


def source_of(name: str) -> str:
    """What a tensor is made of that was put in another order; another's own name."""
    return name.removesuffix(ROWS).removesuffix(PANELS)


def block_of(*inputs: int) -> int | None:
    """The largest block that all these numbers of inputs are multiples of."""
    return next((block for block in BLOCKS if not any(size % block for size in inputs)), None)


def derived_rows(weight: str, shape: tuple[int, ...], bits: int, tail: tuple[int, ...]) -> Derived:
    """``weight`` by rows, two 4-bit values in a byte.

    :param shape: of the stored values, ``(…, inputs, outputs)``.
    :param tail: dimensions that hold a row's bytes.
    """
    return Derived(weight + ROWS, "U8", (*shape[:-2], shape[-1], *tail), (weight,), _rows4 if bits == 4 else _rows8)


def derived_turned(weight: str, shape: tuple[int, ...]) -> Derived:
    """``weight`` by rows, its values as they are.

    :param shape: of the stored int8 values, ``(…, inputs, outputs)``.
    """
    return Derived(weight + ROWS, "I8", (*shape[:-2], shape[-1], shape[-2]), (weight,), partial(_each, lambda one: np.ascontiguousarray(one.T)))


def derived_scales(scale: str, shape: tuple[int, ...], repeats: int, factor: float = 1.0, dtype: str = "F32") -> Derived:
    """``scale``, ``(…, blocks, outputs)``, as ``(…, outputs, blocks · repeats)``: a scale for all inputs is told for each block.

    :param repeats: 0 where the kernel takes one scale for each output, without an axis for blocks.
    """
    turned = (shape[-1], shape[-2] * repeats) if repeats else (shape[-1],)
    return Derived(scale + ROWS, dtype, (*shape[:-2], *turned), (scale,), partial(_scales, repeats=max(repeats, 1), factor=factor, dtype=dtype))


def _each(pack: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> Iterator[np.ndarray]:
    return (pack(one) for one in (values if values.ndim == 3 else values[None]))


def _rows8(values: np.ndarray) -> Iterator[np.ndarray]:
    return _each(lambda one: np.ascontiguousarray(one.T).view(np.uint8) ^ np.uint8(128), values)


def _rows4(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """:param pairs: two outputs in a byte. *Shape:* uint8 ``(…, inputs, outputs / 2)``"""

    def pack(one: np.ndarray) -> np.ndarray:
        values = nibbles(one).T ^ np.uint8(8)
        return values[:, 0::2] | (values[:, 1::2] << 4)

    return _each(pack, pairs)


def _scales(values: np.ndarray, repeats: int, factor: float, dtype: str) -> Iterator[np.ndarray]:
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    by_matrix = values if values.ndim == 3 else values.reshape(1, -1, values.shape[-1])
    return _each(lambda one: np.repeat((one.T.astype(np.float32) * np.float32(factor)).astype(kind), repeats, axis=1), by_matrix)
