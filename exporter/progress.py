"""How far a long piece of work is: lines on stderr, where that is a terminal; nothing at all elsewhere.

What is drawn is in :mod:`.bars`, which is imported only when something is shown.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol


class Advance(Protocol):
    """What a bar gives: call it with each number of steps that were taken."""

    def __call__(self, count: int, peak: int | None = None) -> None:
        """:param peak: bytes of the peak memory, where another process works than this one."""


class RankProgress(Protocol):
    """What lines of ranks give."""

    def __call__(self, rank: int, what: str, part: float, peak: int | None = None) -> None:
        """:param what: what is being worked on.
        :param part: how much of the rank is done, 0 to 1.
        :param peak: bytes of the peak memory, where another process works than this one.
        """


@contextlib.contextmanager
def bar(label: str, total: int, quiet: bool = False, bytes: bool = True) -> Iterator[Advance]:
    """A bar of ``total`` steps with percentage, rate, times and peak memory::

        with bar("compare", len(rows), quiet, bytes=False) as advance:
            for row in rows:
                work(row)
                advance(1)

    Bars within a bar are lines below it. A block that ends well leaves its bar full; without steps there is no bar.
    :param quiet: show nothing.
    :param bytes: steps are bytes, and the rate is one of MB/s; otherwise of steps/s.
    """
    if not total or not _shown(quiet):
        yield lambda count, peak=None: None
        return
    with _lines() as lines:
        line = lines.add(label, total, "bytes" if bytes else "steps")
        yield lambda count, peak=None: lines.advance(line, count, peak)
        lines.finish(line)


@contextlib.contextmanager
def rounds(label: str, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each round of a job; call what you get with the round, its number of steps, and the step that is done."""
    if not _shown(quiet):
        yield lambda number, of, what: None
        return
    known: dict[int, Any] = {}
    with _lines() as lines:

        def told(number: int, of: int, what: str) -> None:
            if number not in known:
                known[number] = lines.add(f"{label} {number + 1}" if number else label, of, "steps")
            lines.advance(known[number], 1)

        yield told


@contextlib.contextmanager
def ranks(quiet: bool = False) -> Iterator[RankProgress]:
    """A line for each rank that is heard of, be they worked on in turn or side by side, in this process or in others."""
    if not _shown(quiet):
        yield lambda rank, what, part, peak=None: None
        return
    known: dict[int, Any] = {}
    with _lines() as lines:

        def told(rank: int, what: str, part: float, peak: int | None = None) -> None:
            if rank not in known:
                known[rank] = lines.add(f"rank {rank}", 1.0, "parts")
            lines.place(known[rank], what, part, peak)

        yield told


def peak_memory() -> int:
    """The most bytes that this process ever held, mapped pages included.

    ``ru_maxrss`` would also count the parent's, before the program of this process was loaded.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _shown(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


_LIVE: list[Any] = []
"""The lines on the terminal, if there are any: it has one cursor, so there is one set of lines at a time."""


@contextlib.contextmanager
def _lines() -> Iterator[Any]:
    """The lines that are there, or new ones, which stay on the terminal when the block ends."""
    if _LIVE:
        yield _LIVE[0]
        return
    from .bars import Lines

    with Lines() as lines:
        _LIVE.append(lines)
        try:
            yield lines
        finally:
            _LIVE.clear()
