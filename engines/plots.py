"""Plots as inline SVG: what all pages draw with. Colours come from the page's style."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, LABEL, ROW, END = 960, 330, 18, 110
"""Of a plot, its row labels, a row, and what stands behind a row; in pixels."""


def svg(height: float, body: str, width: int = WIDTH, kind: str = "") -> str:
    """:param kind: a class of the picture, for the page's style."""
    named = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><svg viewBox="0 0 {width} {height:.0f}" width="{width}" role="img"{named}>{body}</svg></div>'


def label(name: str, y: float) -> str:
    return f'<text x="0" y="{y + 12:.0f}">{escape(name)}</text>'


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """:param anchor: ``start``, ``middle`` or ``end``: which part of the words is at ``x``."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def bars(rows: Sequence[tuple[str, float]], unit: str = "", marked: frozenset[str] = frozenset()) -> str:
    """One horizontal bar a row, its value at its end; ``marked`` rows in the second colour."""
    most = max((value for _, value in rows), default=0) or 1
    body = ""
    for number, (name, value) in enumerate(rows):
        y, length = number * ROW, max(0.0, value) / most * (WIDTH - LABEL - END)
        kind = "soft" if name in marked else "bar"
        body += f'{label(name, y)}<rect class="{kind}" x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}"/><text x="{LABEL + length + 6:.1f}" y="{y + 12}">{value:.3g} {escape(unit)}</text>'
    return svg(max(len(rows), 1) * ROW, body)


@dataclass(frozen=True)
class Axis:
    """From values to pixels; what lies beyond an end is drawn at that end, and what is not a number at the far one."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        inside = self.high if value != value else min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between the ends, in steps of 1, 2 or 5."""
        rough = (self.high - self.low) / most
        if not (isfinite(rough) and rough > 0):
            return [self.low]
        power = 10.0 ** floor(log10(rough))
        step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough)
        return [number * step for number in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


def logarithm(value: float, zero: float) -> float:
    """Base 10; ``zero`` for what has none, infinity for what is not a number."""
    if value != value:
        return float("inf")
    return log10(value) if 0 < value < float("inf") else (float("inf") if value > 0 else zero)


def power(exponent: float) -> str:
    return f"1e{exponent:.0f}"


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isfinite(value) else ("NaN" if value != value else "∞")
