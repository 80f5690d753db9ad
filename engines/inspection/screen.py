"""Text for one screen: names in a column, long values wrapped, long lists cut with a count of what is left out."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 80, 24
INDENT = 16
"""Where values begin, after two spaces and a name: a sha256 just fits behind."""

UNBROKEN = "\u00a0"
"""Stands for a space at which no line is broken, until lines are made."""

Entry = tuple[str, ...]
"""One fact as the lines that it takes."""


@dataclass(frozen=True)
class Section:
    """Entries of one sort; those that do not fit are counted."""

    name: str
    entries: tuple[Entry, ...]
    least: int = 2
    """Entries that are shown however long the rest is."""
    where: str = ""
    """Where the ones that are left out can be seen."""

    def lines(self, shown: int) -> list[str]:
        kept = [line for one in self.entries[:shown] for line in one]
        left = len(self.entries) - shown
        more = f"… and {left:,} more{self.where}" if shown else f"{left:,}{self.where}"
        return kept + ([*entry("" if shown else self.name, more)] if left > 0 else [])


def entry(name: str, value: object, hang: int = 0, indent: int = INDENT) -> Entry:
    """``  name          value``, wrapped under itself.

    :param hang: how much further wrapped lines are set in.
    """
    head = f"  {name} ".ljust(indent)
    lines = textwrap.wrap(str(value), WIDTH, initial_indent=head, subsequent_indent=" " * (indent + hang), break_long_words=False, break_on_hyphens=False)
    return tuple(line.replace(UNBROKEN, " ") for line in lines) or (head.rstrip(),)


def section(name: str, values: Iterable[object], least: int = 2, where: str = "") -> Section:
    """Values of one name, an entry each; the name stands before the first."""
    return Section(name, tuple(entry("" if number else name, value, hang=2) for number, value in enumerate(values)), least, where)


def joined(parts: Iterable[object]) -> str:
    """``a, b, c``, to be wrapped between the parts alone."""
    return ", ".join(str(part).replace(" ", UNBROKEN) for part in parts)


def fit(head: Sequence[str], sections: Iterable[Section], height: int = HEIGHT) -> str:
    """All of ``head`` and of the sections what fits: the longest gives way first."""
    parts = [part for part in sections if part.entries]
    shown = [len(part.entries) for part in parts]

    def sizes() -> list[int]:
        return [len(part.lines(count)) for part, count in zip(parts, shown, strict=True)]

    while len(head) + sum(sizes()) > height:
        order = sorted(range(len(parts)), key=lambda i: -sizes()[i])
        longest = next((i for i in order if shown[i] > parts[i].least), None)
        if longest is None:
            break
        # A cut list has a line more, for its count: losing a single entry would gain nothing.
        shown[longest] -= min(2 if shown[longest] == len(parts[longest].entries) else 1, shown[longest] - parts[longest].least)
    return "\n".join([*head, *(line for part, count in zip(parts, shown, strict=True) for line in part.lines(count))])


def cut(items: Iterable[object], most: int = 4) -> str:
    """``a, b, c … and 9 more``"""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" … and {len(names) - most} more" if len(names) > most else "")


def span(start: int, stop: int) -> str:
    """A half-open range as people read it."""
    return f"{start}–{stop - 1}" if stop - start > 1 else str(start) if stop > start else "none"


def spans(numbers: Iterable[int]) -> str:
    """``0–3, 7``"""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return ", ".join(span(*run) for run in runs)


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows under their keys, columns as wide as they must be; the last ones, of numbers, to the right."""
    keys = list(rows[0]) if rows else []
    wide = {key: max(len(key), *(len(row[key]) for row in rows)) for key in keys}
    told = [{key: key for key in keys}, *rows]
    return ["  " + "  ".join(_cell(row[key], wide[key], rows[0][key]) for key in keys).rstrip() for row in told]


def _cell(text: str, width: int, example: str) -> str:
    return text.rjust(width) if re.fullmatch(r"[\d,.]+(–[\d,.]+)?", example) and "–" not in example else text.ljust(width)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def is_number(value: Any) -> bool:
    """Whether it is one that can be reckoned with: JSON may hold any."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, float) or abs(value) < 1 << 200)


def figure(value: Any) -> str:
    """A number with four digits that say something, or the value as it is."""
    if not is_number(value):
        return str(value)
    if isinstance(value, int) or (value == value and abs(value) < 1e15 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def over_layers(texts: Iterable[str]) -> dict[str, set[int]]:
    """Texts that differ in the layer's number alone, taken together: pattern with ``layers.*`` → the layers."""
    found: dict[str, set[int]] = {}
    for text in texts:
        layers = {int(number) for number in re.findall(r"\blayers\.(\d+)", text)}
        found.setdefault(any_layer(text), set()).update(layers)
    return found


def any_layer(text: str) -> str:
    return re.sub(r"\blayers\.\d+", "layers.*", text)


def named_layers(pattern: str, layers: Iterable[int]) -> str:
    """``/layers.*/moe_ffn/Route`` of layers 1 to 3 → ``/layers.1–3/moe_ffn/Route``"""
    told = spans(layers)
    return pattern.replace("layers.*", f"layers.{told}" if "," not in told else f"layers.{{{told}}}")
