"""Memory, streams and captured steps of CUDA devices: the one door to NVIDIA's bindings, which bring the CUDA runtime with them."""

import contextlib
import importlib
import weakref
from collections.abc import Callable
from functools import cache
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

from exporter.errors import LoadError, RunError

if TYPE_CHECKING:
    import numpy as np

MODULE = "cuda.bindings.runtime"
EXTRA = "cuda-bindings"


@cache
def cuda() -> ModuleType:
    """:raises LoadError: the bindings cannot be imported."""
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError) as cause:
        raise LoadError(f"this needs {EXTRA}, which cannot be imported: {cause}.", hint=f"pip install {EXTRA}") from cause


def call(name: str, *arguments: Any) -> Any:
    """A function of the CUDA runtime. :returns: what it gives beside its status. :raises RunError: the status, in CUDA's words."""
    status, *given = getattr(cuda(), name)(*arguments)
    if int(status):
        raise RunError(f"CUDA refuses {name}: {reason(status)}.")
    return given[0] if given else None


def reason(status: Any) -> str:
    """What a status means."""
    told = cuda().cudaGetErrorString(status)[1]
    return told.decode() if isinstance(told, bytes) else str(told)


def devices() -> tuple[int, str | None]:
    """How many CUDA devices there are, and why there are none."""
    status, count = cuda().cudaGetDeviceCount()
    return (int(count), None) if not int(status) else (0, reason(status))


def select(device: int) -> None:
    """The device that this thread's next calls are about."""
    call("cudaSetDevice", device)


def numpy_type(dtype: str) -> "np.dtype":
    """Of a dtype as a signature names it."""
    import numpy as np

    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


class HostValue:
    """A value of the host's, as sessions take and give it."""

    def __init__(self, array: "np.ndarray") -> None:
        import numpy as np

        self.array = np.ascontiguousarray(array)

    def numpy(self) -> "np.ndarray":
        return self.array

    def shape(self) -> list[int]:
        return list(self.array.shape)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    @property
    def bytes(self) -> int:
        return self.array.nbytes


class Buffer:
    """Memory of a device, zeroed when it is made, given back when nobody holds it.

    :param within: what has the memory that this is a part of, ``offset`` bytes from its beginning: a buffer, or an OrtValue.
    """

    def __init__(self, device: int, shape: tuple[int, ...], dtype: str, within: Any = None, offset: int = 0) -> None:
        self.device, self.sizes, self.dtype, self.within = device, tuple(shape), dtype, within
        self.bytes = prod(self.sizes) * numpy_type(dtype).itemsize
        if within is not None:
            self.address = within.data_ptr() + offset
            return
        select(device)
        self.address = int(call("cudaMalloc", max(self.bytes, 1)))
        self.free = weakref.finalize(self, _free, device, self.address)
        call("cudaMemset", self.address, 0, self.bytes)
        _settle()

    def shape(self) -> list[int]:
        return list(self.sizes)

    def data_ptr(self) -> int:
        return self.address

    def numpy(self) -> "np.ndarray":
        """A copy, of what was there when the last session ended its run."""
        import numpy as np

        select(self.device)
        copied = np.empty(self.sizes, numpy_type(self.dtype))
        call("cudaMemcpy", copied.ctypes.data, self.address, self.bytes, cuda().cudaMemcpyKind.cudaMemcpyDeviceToHost)
        return copied

    def part(self, shape: tuple[int, ...], *index: int) -> "Buffer":
        """A buffer of this shape over this one's memory, from the element with this index on."""
        offset = sum(place * prod(self.sizes[axis + 1 :]) for axis, place in enumerate(index))
        return Buffer(self.device, shape, self.dtype, self, offset * numpy_type(self.dtype).itemsize)

    def take(self, source: "Buffer") -> None:
        """Copy another buffer of the device, of the same size, over this one."""
        select(self.device)
        call("cudaMemcpy", self.address, source.address, self.bytes, cuda().cudaMemcpyKind.cudaMemcpyDeviceToDevice)
        _settle()


def _settle() -> None:
    """Wait for what CUDA does on its own stream, which those of sessions do not wait for."""
    call("cudaStreamSynchronize", 0)


def _free(device: int, address: int) -> None:
    with contextlib.suppress(Exception):  # the process may be ending, CUDA before us
        select(device)
        call("cudaFree", address)


class DeviceMemory:
    """The memory of a chain whose ranks compute on CUDA devices. See :class:`.memory.Memory`.

    :param device_of: rank → its device.
    """

    def __init__(self, device_of: Callable[[int], int]) -> None:
        self.device_of = device_of

    def value(self, array: "np.ndarray") -> HostValue:
        return HostValue(array)

    def zeros(self, rank: int, shape: tuple[int, ...], dtype: str) -> Buffer:
        return Buffer(self.device_of(rank), shape, dtype)

    def rows(self, buffer: Buffer, start: int, stop: int) -> Buffer:
        return buffer.part((stop - start, *buffer.sizes[1:]), start)

    def copy(self, source: Buffer, target: Buffer, source_row: int, target_row: int, positions: int) -> None:
        shape = (positions, *source.sizes[2:])
        target.part(shape, target_row).take(source.part(shape, source_row))


class Stream:
    """An order of work on one device."""

    def __init__(self, device: int) -> None:
        select(device)
        self.device = device
        self.handle = int(call("cudaStreamCreateWithFlags", cuda().cudaStreamNonBlocking))
        self.free = weakref.finalize(self, _destroy, "cudaStreamDestroy", device, self.handle)

    def put(self, value: "HostValue | Buffer", place: Buffer) -> None:
        """Copy a value to the device, or within it. The value has to stay as it is until :meth:`wait`."""
        if value.bytes != place.bytes:
            raise RunError(f"a value of {value.bytes} bytes does not fit a buffer of {place.bytes}.")
        kinds = cuda().cudaMemcpyKind
        kind = kinds.cudaMemcpyDeviceToDevice if isinstance(value, Buffer) else kinds.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", place.address, value.address, place.bytes, kind, self.handle)

    def get(self, place: Buffer, value: HostValue) -> None:
        """Copy a buffer to the host; the value holds it after :meth:`wait`."""
        call("cudaMemcpyAsync", value.address, place.address, place.bytes, cuda().cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle)

    def wait(self) -> None:
        call("cudaStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], bool]) -> "Replay | None":
        """Work that is put on this stream, to be launched at once; None where it cannot be captured, and nothing was done."""
        call("cudaStreamBeginCapture", self.handle, cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        worked = False
        try:
            worked = work()
        finally:
            status, graph = cuda().cudaStreamEndCapture(self.handle)
            captured = worked and not int(status)
            status, replay = cuda().cudaGraphInstantiate(graph, 0) if captured else (status, None)
            if graph is not None:
                cuda().cudaGraphDestroy(graph)
        if not captured or int(status):
            cuda().cudaGetLastError()  # told and forgotten: what comes next is to tell of itself
            return None
        return Replay(self, replay)


class Replay:
    """A captured step of one stream."""

    def __init__(self, stream: Stream, graph: Any) -> None:
        self.stream, self.graph = stream, graph
        self.free = weakref.finalize(self, _destroy, "cudaGraphExecDestroy", stream.device, graph)

    def launch(self) -> None:
        call("cudaGraphLaunch", self.graph, self.stream.handle)


def _destroy(name: str, device: int, handle: Any) -> None:
    with contextlib.suppress(Exception):  # as with memory
        select(device)
        call(name, handle)
