"""The lines of progress that rich draws; :mod:`.progress` decides whether there are any."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from .progress import peak_memory

BAR_WIDTH = 30
"""Cells of a bar at most; it gives way to the figures where the terminal is narrow."""
WHAT_WIDTH = 19
"""Cells of ``layers.60.attention``: a line that says what is worked on does not jump about."""
FULL_WIDTH = 72
"""Cells of a terminal that times and memory have room in."""


class Words(ProgressColumn):
    """A column that a function writes. Text is never wrapped: where there is no room, it is cut."""

    max_refresh = 0.2

    def __init__(self, words: Callable[[Task], str], style: str = "", justify: Any = "right") -> None:
        self.words, self.style = words, style
        super().__init__(Column(no_wrap=True, justify=justify))

    def render(self, task: Task) -> Text:
        return Text(self.words(task), self.style)


class Above(FileProxy):
    """What is written here appears above the lines."""

    # Without these two, click takes it for a broken stream and writes past it.
    encoding = property(lambda self: self.rich_proxied_file.encoding)
    errors = property(lambda self: self.rich_proxied_file.errors)


class Lines:
    """Lines on stderr, redrawn in place. What others write meanwhile to ``sys.stderr``, or to a stdout that is a terminal too,
    appears above them; a stdout that is none is left alone."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr, highlight=False)
        self.drawn = Progress(*_columns(console.width), console=console, redirect_stdout=False, redirect_stderr=False)
        self.redirected = ExitStack()

    def __enter__(self) -> "Lines":
        self.drawn.start()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty():
                above = Above(self.drawn.console, stream)
                setattr(sys, name, above)
                self.redirected.callback(setattr, sys, name, stream)
                self.redirected.callback(above.flush)
        return self

    def __exit__(self, *_: object) -> None:
        self.redirected.close()
        self.drawn.stop()

    def add(self, label: str, total: float, unit: str) -> TaskID:
        """:param unit: ``bytes``, ``steps``, or ``parts``, which have no rate."""
        return self.drawn.add_task(label, total=total, unit=unit, what="", peak=None)

    def advance(self, line: TaskID, count: int, peak: int | None = None) -> None:
        self.drawn.update(line, advance=count, peak=peak)

    def place(self, line: TaskID, what: str, part: float, peak: int | None = None) -> None:
        self.drawn.update(line, completed=part, what=f"{what:{WHAT_WIDTH}}", peak=peak)
        if part >= 1:
            self.finish(line)

    def finish(self, line: TaskID) -> None:
        """Full, and with the memory of now: what comes later is another line's."""
        task = self.drawn.tasks[self.drawn.task_ids.index(line)]
        self.drawn.update(line, completed=task.total, peak=task.fields["peak"] or peak_memory())


def _columns(width: int) -> list[ProgressColumn]:
    always = [
        Words(lambda task: task.description, justify="left"),
        Words(lambda task: task.fields["what"], "dim", "left"),
        BarColumn(BAR_WIDTH),
        Words(lambda task: f"{int(task.percentage)}%"),
        Words(rate),
    ]
    return always + ([Words(times, "cyan"), Words(peak, "dim")] if width >= FULL_WIDTH else [])


def rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    if speed is None or task.fields["unit"] == "parts":
        return ""
    return f"{speed / 1e6:,.0f} MB/s" if task.fields["unit"] == "bytes" else f"{_figures(speed)} steps/s"


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def times(task: Task) -> str:
    """Since the line is there, and how long it will still take; at the end how long it took."""
    if task.finished:
        return clock(task.finished_time or 0)
    left = task.time_remaining
    return f"{clock(task.elapsed or 0)} ETA {'-:--' if left is None else clock(left)}"


def clock(seconds: float) -> str:
    """``1:02:03``, and without hours ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def peak(task: Task) -> str:
    held = task.fields["peak"] or peak_memory()
    return f"peak {held / 1e9:.1f} GB" if held >= 1e9 else f"peak {held / 1e6:.0f} MB"
