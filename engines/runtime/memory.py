"""Where a chain's values lie, and how a cache's rows are reached there."""

from typing import TYPE_CHECKING, Any, Protocol

from exporter.errors import RunError

from .session import value_of, zeros

if TYPE_CHECKING:
    import numpy as np


class Memory(Protocol):
    """The memory that a backend's sessions compute in. Values have ``numpy()`` and ``shape()``."""

    def value(self, array: "np.ndarray") -> Any:
        """What a session is given of the host's: over the array's own memory."""

    def zeros(self, rank: int, shape: tuple[int, ...], dtype: str) -> Any:
        """A buffer that a rank reads and writes in place."""

    def rows(self, buffer: Any, start: int, stop: int) -> Any:
        """A buffer over the memory of some rows of another, which has to live as long."""

    def copy(self, source: Any, target: Any, source_row: int, target_row: int, positions: int) -> None:
        """Copy the first positions of one row over those of another. *Shape of buffers:* ``(batch, context, latent)``"""


class OrtMemory:
    """OrtValues, on a CPU or on ONNX Runtime's CUDA device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def value(self, array: "np.ndarray") -> Any:
        return value_of(array)

    def zeros(self, rank: int, shape: tuple[int, ...], dtype: str) -> Any:
        return zeros(shape, dtype, self.device)

    def rows(self, buffer: Any, start: int, stop: int) -> Any:
        return value_of(_array(buffer)[start:stop])

    def copy(self, source: Any, target: Any, source_row: int, target_row: int, positions: int) -> None:
        _array(target)[target_row, :positions] = _array(source)[source_row, :positions]


def _array(buffer: Any) -> "np.ndarray":
    # Of a device's memory numpy() gives a copy, which would take what is written to it for itself.
    if buffer.device_name() != "cpu":
        raise RunError(f"rows of a cache on {buffer.device_name()} cannot be viewed.", hint="Use generate_batch there.")
    return buffer.numpy()
