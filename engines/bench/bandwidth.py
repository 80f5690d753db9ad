"""How fast this process reads memory: the roof that a decode step is held against."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LEAST_BYTES = 1 << 30
CACHES = 4
"""The buffer is at least this many times the last-level cache, so that next to nothing of it is found there."""
MEMORY_PART = 4
"""… but at most this part of the memory that is free."""


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second over the passes."""

    best: float
    median: float


def read_bandwidth(threads: int, size: int | None = None, passes: int = 7) -> Bandwidth:
    """Bytes read per second by ``threads`` threads, each summing its own part of one buffer of int64 with ``numpy.add.reduce``.

    The sum is vectorised, releases the interpreter's lock and has one addition for eight bytes: it waits for memory, not for
    arithmetic. Reads alone are counted; nothing is written. Of ``add``, ``bitwise_or``, ``maximum`` and the dot product, none is faster.

    :param size: bytes of the buffer; by default beyond the last-level cache.
    """
    import numpy as np

    buffer = np.ones((size or buffer_bytes()) // 8, np.int64)
    parts = np.array_split(buffer, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = [_pass(pool, np.add.reduce, parts) for _ in range(passes + 1)][1:]
    return Bandwidth(buffer.nbytes / min(seconds), buffer.nbytes / statistics.median(seconds))


def _pass(pool: ThreadPoolExecutor, read: object, parts: list) -> float:
    started = time.perf_counter()
    list(pool.map(read, parts))
    return time.perf_counter() - started


def buffer_bytes() -> int:
    """At least a GiB and several last-level caches, where memory allows."""
    wanted = max(LEAST_BYTES, CACHES * last_level_cache())
    return min(wanted, max(LEAST_BYTES // 4, _available_memory() // MEMORY_PART))


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux names; 0 where it names none."""
    found = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in found if size[-1:] in ("K", "M")), default=0)


def _available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return MEMORY_PART * LEAST_BYTES
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
