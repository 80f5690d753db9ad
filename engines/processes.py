"""Ranks worked on side by side, in a process each: what they tell arrives as they work; when one fails, the others end."""

import contextlib
import logging
import multiprocessing
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from exporter import logs
from exporter.errors import BuildError
from exporter.progress import RankProgress, peak_memory

FINEST = 0.001
"""The least part of a rank that is told of anew."""


@dataclass(frozen=True)
class Told:
    """A process got on."""

    what: str
    part: float
    peak: int


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Failed:
    error: BaseException


class Teller:
    """Progress of a process, sent to its parent; libraries may tell it from threads of their own."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.lock = pipe, threading.Lock()
        self.last = ("", -1.0)

    def __call__(self, rank: int, what: str, part: float, peak: int | None = None) -> None:
        if what != self.last[0] or abs(part - self.last[1]) >= FINEST or part >= 1:
            self.last = (what, part)
            self.send(Told(what, part, peak_memory()))

    def send(self, message: Any) -> None:
        with self.lock:
            self.pipe.send(message)


def side_by_side(work: Callable[..., Any], jobs: Mapping[int, tuple[Any, ...]], at_once: int, progress: RankProgress) -> dict[int, Any]:
    """Call ``work(*arguments, progress)`` for each rank, ``at_once`` at a time, each in a process of its own.

    One process a rank, not a pool: so the memory that is told is the rank's, and what a library keeps goes with it.
    :param work: a function of a module: processes find it by its name.
    :param jobs: rank → arguments, which are sent to its process.
    :raises Exception: what ``work`` raised first. The other processes are ended where they stand: whoever calls tidies up.
    """
    waiting, running, done = deque(jobs.items()), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                rank, arguments = waiting.popleft()
                pipe, process = _start(work, arguments)
                running[pipe] = (rank, process)
            for pipe in wait(list(running)):
                rank, process = running[pipe]
                message = _receive(pipe, rank, process)
                if isinstance(message, Done):
                    done[rank] = message.value
                    del running[pipe]
                    process.join()
                else:
                    _pass_on(rank, message, progress)
    finally:
        for _, process in running.values():
            process.kill()
        for _, process in running.values():
            process.join()
    return done


def _start(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")  # a copy of this process would hold its libraries' locks and threads
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(its, work, arguments, logs.level()), daemon=True)
    with _interrupts_ignored():
        process.start()
    its.close()
    return mine, process


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started here is born deaf to Ctrl-C: its parent hears it too, and ends it; one of them speaks."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread decide
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)


def _receive(pipe: Connection, rank: int, process: Any) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise BuildError(f"the process of rank {rank} ended with code {process.exitcode}.", hint="Code -9 means that memory ran out: try a lower --jobs.") from None


def _pass_on(rank: int, message: Any, progress: RankProgress) -> None:
    match message:
        case Told(what, part, peak):
            progress(rank, what, part, peak)
        case logging.LogRecord():
            logs.show_forwarded(message)
        case Failed(error):
            raise error


def _child(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...], level: int) -> None:
    teller = Teller(pipe)
    logs.forward(teller.send, level)
    with contextlib.suppress(BrokenPipeError):  # the parent ended
        try:
            teller.send(Done(work(*arguments, teller)))
        except BrokenPipeError:
            raise
        except BaseException as error:
            teller.send(Failed(_sendable(error)))


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; or those alone, where a library's error cannot be sent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(*error.__notes__)
