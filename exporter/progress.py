"""A bar with rate and remaining time on stderr, where that is a terminal; silent elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

Item = TypeVar("Item")


@contextlib.contextmanager
def bar(label: str, total: int, quiet: bool = False, bytes: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of ``total`` steps; call what you get with each number of steps that were taken.

    :param bytes: steps are bytes, and their rate is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    begin = time.monotonic()
    with click.progressbar(length=max(total, 1), label=label, file=sys.stderr, item_show_func=lambda text: text, update_min_steps=max(total // 1000, 1)) as steps:
        yield lambda count: steps.update(count, _rate(steps.pos + count, time.monotonic() - begin) if bytes else None)


def progress(items: Iterable[Item], label: str, quiet: bool = False) -> Iterator[Item]:
    """The items again, with a bar that grows as they are used up."""
    items = list(items)
    with bar(label, len(items), quiet, bytes=False) as advance:
        for item in items:
            yield item
            advance(1)


def _rate(done: int, seconds: float) -> str:
    return f"{done / max(seconds, 1e-6) / 1e6:,.0f} MB/s"


@contextlib.contextmanager
def rounds(label: str, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each round of a job; call what you get with the round, its number of steps, and the step that is done."""
    if quiet or not sys.stderr.isatty():
        yield lambda number, of, what: None
        return
    with contextlib.ExitStack() as stack:
        bars: dict[int, Any] = {}

        def told(number: int, of: int, what: str) -> None:
            if number not in bars:
                stack.close()
                name = f"{label} {number + 1}" if number else label
                bars[number] = stack.enter_context(click.progressbar(length=of, label=name, file=sys.stderr, item_show_func=lambda text: text))
            bars[number].update(1, what)

        yield told
