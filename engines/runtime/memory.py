"""Where a chain's values lie, and how a cache's rows are reached there."""

from typing import TYPE_CHECKING, Any, Protocol

from .device import Buffer, DeviceMemory
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
    """OrtValues on a CPU."""

    def value(self, array: "np.ndarray") -> Any:
        return value_of(array)

    def zeros(self, rank: int, shape: tuple[int, ...], dtype: str) -> Any:
        return zeros(shape, dtype)

    def rows(self, buffer: Any, start: int, stop: int) -> Any:
        return value_of(buffer.numpy()[start:stop])

    def copy(self, source: Any, target: Any, source_row: int, target_row: int, positions: int) -> None:
        target.numpy()[target_row, :positions] = source.numpy()[source_row, :positions]


class OrtDeviceMemory(DeviceMemory):
    """Of ONNX Runtime's CUDA device: what goes in are OrtValues of the host, what stays lies in ONNX Runtime's own memory there."""

    def __init__(self, device: str) -> None:
        super().__init__(lambda rank: 0)
        self.device = device

    def value(self, array: "np.ndarray") -> Any:
        return value_of(array)

    def zeros(self, rank: int, shape: tuple[int, ...], dtype: str) -> Buffer:
        return Buffer(0, shape, dtype, within=zeros(shape, dtype, self.device))
