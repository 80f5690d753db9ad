"""A bar with rate and remaining time on stderr, where that is a terminal; silent elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import click

Item = TypeVar("Item")


def progress(items: Iterable[Item], label: str, quiet: bool = False, size: Callable[[Item], int] | None = None) -> Iterator[Item]:
    """The items again, with a bar that grows as they are used up.

    :param size: bytes that an item stands for; the bar then counts bytes and shows their rate.
    """
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    items = list(items)
    measure = size or (lambda item: 1)
    done, begin = 0, time.monotonic()
    with click.progressbar(length=sum(map(measure, items)) or 1, label=label, file=sys.stderr, item_show_func=lambda text: text) as bar:
        for item in items:
            yield item
            done += measure(item)
            bar.update(measure(item), _rate(done, time.monotonic() - begin) if size else None)


def _rate(done: int, seconds: float) -> str:
    return f"{done / max(seconds, 1e-6) / 1e6:,.0f} MB/s"
