"""``AllGather``: the tensor ranks' parts side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .op import Op, Shape


def reference(*parts: np.ndarray, ranks: int, axis: int = -1) -> np.ndarray:
    """One part per rank, concatenated in rank order."""
    return np.concatenate(parts, axis=axis)


def text(attributes: Mapping[str, Any], inputs: int) -> str:
    """Alone, a rank sees its own part, once for every rank: the shape must be the true one."""
    ranks = attributes["ranks"]
    if ranks == 1:
        return "y = Identity (x)"
    return f"y = Concat <axis = {attributes.get('axis', -1)}> ({', '.join(['x'] * ranks)})"


def shapes(x: Shape, *, ranks: int, axis: int = -1) -> tuple[Shape, ...]:
    """``x``, ``ranks`` times as long along ``axis``; a symbolic length becomes unknown."""
    length = x[axis]
    gathered = list(x)
    gathered[axis] = length * ranks if isinstance(length, int) else None
    return (tuple(gathered),)


ALL_GATHER = Op("AllGather", ("x",), ("y",), ("ranks", "axis"), reference, text, shapes)
