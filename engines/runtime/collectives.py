"""What the tensor ranks of a stage make of their parts: in rank order, so that results are the same from run to run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def all_reduce(parts: "Sequence[np.ndarray]") -> "np.ndarray":
    """The sum, in float32, in the dtype of the parts."""
    import numpy as np

    total = parts[0].astype(np.float32)
    for part in parts[1:]:
        total += part
    return total.astype(parts[0].dtype, copy=False)


def all_gather(parts: "Sequence[np.ndarray]") -> "np.ndarray":
    """The parts side by side along the last axis."""
    import numpy as np

    return np.concatenate(parts, axis=-1)
