"""What stands for ``cuda.bindings.runtime`` where there is no GPU: devices that hold bytes, and streams that work when they are waited for.

A device's addresses are of no memory of the process, so that whoever takes one for the host's is found out. Work is done at the
last moment that CUDA allows: what is read too soon is old, what is freed or changed too soon is missed. What no program may do
is a :class:`Fault`, and kept in ``faults``, since clean-up hides what is raised in it.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import count

import numpy as np

BASE = 0x5E_0000_0000_0000
"""Where devices' addresses begin: beyond what a process can have."""
ALIGNMENT = 256
NO_DRIVER, OUT_OF_MEMORY, NOT_CAPTURED = 35, 2, 901
TOLD = {0: "no error", NO_DRIVER: "CUDA driver version is insufficient for CUDA runtime version", OUT_OF_MEMORY: "out of memory", NOT_CAPTURED: "operation failed due to a previous error during capture"}


class Fault(AssertionError):
    """Something that a device would answer by a crash, by garbage, or by nothing at all."""


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntFlag):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Memory:
    device: int
    bytes: np.ndarray


@dataclass
class Work:
    """A stream: what is to be done, and what was captured instead, if it captures."""

    device: int
    pending: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None


class Cuda:
    """The functions that are used, by their names, over memory that is made up. :param free_bytes: of each device."""

    cudaMemcpyKind, cudaStreamCaptureMode, cudaStreamNonBlocking = cudaMemcpyKind, cudaStreamCaptureMode, 1

    def __init__(self, count: int = 1, free_bytes: int = 1 << 30) -> None:
        self.count, self.free_bytes, self.captures = count, free_bytes, True
        self.memory: dict[int, Memory] = {}
        self.streams: dict[int, Work] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.faults: list[str] = []
        self.launches = 0
        self.next, self.handles, self.here = BASE, _counter(), threading.local()

    @property
    def device(self) -> int:
        return getattr(self.here, "device", 0)

    @property
    def held_bytes(self) -> int:
        return sum(one.bytes.size for one in self.memory.values())

    def fault(self, text: str) -> Fault:
        self.faults.append(text)
        return Fault(text)

    def locate(self, address: int, size: int, device: int) -> np.ndarray:
        """The bytes of a device at an address, all of which have to be of one allocation."""
        for begin, one in self.memory.items():
            if begin <= address and address + size <= begin + one.bytes.size:
                if one.device != device:
                    raise self.fault(f"{size} bytes of device {one.device} are reached from device {device}")
                return one.bytes[address - begin : address - begin + size]
        raise self.fault(f"{size} bytes at {address:#x} are no memory of a device, or no longer")

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, TOLD[status].encode()

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return (0, self.count) if self.count else (NO_DRIVER, 0)

    def cudaSetDevice(self, device: int) -> tuple[int]:
        if not 0 <= device < self.count:
            raise self.fault(f"there is no device {device}")
        self.here.device = device
        return (0,)

    # What was in it before is no number, in any float.
    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if self.held_bytes + size > self.free_bytes:
            return OUT_OF_MEMORY, 0
        address, self.next = self.next, self.next + -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.memory[address] = Memory(self.device, np.full(size, 0xFF, np.uint8))
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        if address not in self.memory:
            raise self.fault(f"{address:#x} is freed, and is no allocation")
        self.settle()  # as CUDA does: it waits for the device
        del self.memory[address]
        return (0,)

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[int]:
        device = self.device
        self.put(0, lambda: self.locate(address, size, device).fill(value))
        return (0,)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: cudaMemcpyKind) -> tuple[int]:
        if kind is cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            self.put(0, self.copying(target, source, size, kind, self.device))
            return (0,)
        if any(work.pending for work in self.streams.values()):
            raise self.fault("memory is copied to or from the host while a stream that was not waited for has work")
        self.copying(target, source, size, kind, self.device)()
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[int]:
        self.put(stream, self.copying(target, source, size, kind, self.device))
        return (0,)

    def copying(self, target: int, source: int, size: int, kind: cudaMemcpyKind, device: int) -> Callable[[], None]:
        def work() -> None:
            given = self.host(source, size) if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else self.locate(source, size, device)
            place = self.host(target, size) if kind is cudaMemcpyKind.cudaMemcpyDeviceToHost else self.locate(target, size, device)
            place[:] = given

        return work

    def host(self, address: int, size: int) -> np.ndarray:
        if address >= BASE:
            raise self.fault(f"{address:#x} is a device's, and taken for the host's")
        return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8) if size else np.empty(0, np.uint8)

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Work for a stream: done when it is waited for, or never where it captures."""
        one = self.streams.setdefault(0, Work(0)) if stream == 0 else self.streams[stream]
        if stream and one.device != self.device:
            raise self.fault(f"a stream of device {one.device} is used on device {self.device}")
        if stream and self.streams.get(0, Work(0)).pending:
            raise self.fault("a stream goes on while CUDA's own, which it does not wait for, has work")
        (one.pending if one.captured is None else one.captured).append(work)

    def settle(self) -> None:
        for work in self.streams.values():
            self.finish(work)

    def finish(self, work: Work) -> None:
        pending, work.pending = work.pending, []
        for one in pending:
            one()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        if flags != self.cudaStreamNonBlocking:
            raise self.fault("a stream that waits for CUDA's own")
        handle = next(self.handles)
        self.streams[handle] = Work(self.device)
        return 0, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if stream in self.streams:
            if self.streams[stream].captured is not None:
                raise self.fault("a stream is waited for while it captures")
            self.finish(self.streams[stream])
        elif stream:
            raise self.fault(f"there is no stream {stream}")
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.finish(self.streams.pop(stream))
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.streams[stream].captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int | None]:
        captured, self.streams[stream].captured = self.streams[stream].captured, None
        if not self.captures:
            return NOT_CAPTURED, None
        graph = next(self.handles)
        self.graphs[graph] = captured
        return 0, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        replay = next(self.handles)
        self.graphs[replay] = self.graphs[graph]
        return 0, replay

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (0,)

    def cudaGraphExecDestroy(self, replay: int) -> tuple[int]:
        del self.graphs[replay]
        return (0,)

    def cudaGraphLaunch(self, replay: int, stream: int) -> tuple[int]:
        self.launches += 1
        for work in self.graphs[replay]:
            self.put(stream, work)
        return (0,)


def _counter() -> Iterator[int]:
    return count(1001)


@contextmanager
def no_faults(cuda: Cuda) -> Iterator[Cuda]:
    """Whatever was done within, in clean-up too, was allowed."""
    yield cuda
    assert not cuda.faults, cuda.faults
