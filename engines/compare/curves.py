"""Plots of a comparison's values, as inline SVG: distances along the model, logits against logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, inf, log, log10
from typing import TYPE_CHECKING

from ..plots import WIDTH, Axis, line, logarithm, number, power, svg, text

if TYPE_CHECKING:
    import numpy as np

DECADES = 18
"""Of a logarithmic axis, at most."""
CROWD = 40
"""Points of a line beyond which they are drawn smaller."""
STYLE = """
:root{--second:#5d8f36}@media(prefers-color-scheme:dark){:root{--second:#9ccc74}}.pair{display:flex;flex-wrap:wrap;gap:1.5rem}
.own,.given{fill:none;stroke-width:1.8}.given{stroke-dasharray:4 3}.update{stroke:var(--bar)}.hidden{stroke:var(--second)}.last{stroke:var(--ink)}.spot{stroke-width:5;stroke-linecap:round;stroke-dasharray:none}.halo{paint-order:stroke;stroke:var(--paper);stroke-width:4}.crowd{stroke-width:2.5}.dots{fill:none;stroke:var(--bar);stroke-width:3;stroke-linecap:round;opacity:.7}
"""


@dataclass(frozen=True)
class Curve:
    """One line of a drift plot."""

    words: str
    kind: str
    """Classes of the style."""
    values: dict[int, float]
    """Number of the segment → relative L2."""


def curves(lines: Sequence[Curve], names: Sequence[str], limits: Sequence[tuple[str, float]], marked: str | None) -> str:
    """Segments across, distance up, on a logarithmic scale; what is equal lies on the lower edge, what is no number on the upper."""
    left, top, right, bottom = 60, 34, WIDTH - 12, 340
    known = [value for one in lines for value in one.values.values()] + [value for _, value in limits]
    exponents = [log10(value) for value in known if 0 < value < inf]
    high = ceil(max(exponents, default=0.0) + 0.05)
    low = max(floor(min(exponents, default=-1.0) - 0.05), high - DECADES)
    x, y = Axis(0, max(len(names) - 1, 1), left + 8, right - 8), Axis(low, high, bottom, top)
    parts = [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
    for tick in y.ticks(9):
        if tick == round(tick):
            parts += [line(left, y(tick), right, y(tick), "grid"), text(left - 6, y(tick) + 4, power(tick), "end")]
    parts.append(_segment_axis(names, x, bottom))
    labels = [text(0, 16, "relative L2")]
    for place, (words, value) in enumerate(limits):
        level, at, anchor = y(logarithm(value, low)), (left + 8, right)[place % 2], ("start", "end")[place % 2]
        parts.append(line(left, level, right, level, "limit"))
        labels.append(text(at, level - 4, f"{words} {value:.2g}", anchor, "halo"))
    if marked in names:
        here = x(names.index(marked))
        side, anchor = (4, "start") if here < WIDTH / 2 else (-4, "end")
        parts.append(line(here, top, here, bottom, "here"))
        labels.append(text(here + side, top + 14, marked, anchor, "at halo"))
    spot = "spot" if len(names) <= CROWD else "spot crowd"
    for place, one in enumerate(lines):
        points = [(x(at), y(logarithm(value, low))) for at, value in one.values.items()]
        parts.append(f'<polyline class="{one.kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        parts += [f'<path class="{one.kind} {spot}" d="M{a:.1f} {b:.1f}h0"><title>{escape(names[at])}, {escape(one.words)}: {number(value) if value else "equal"}</title></path>' for (a, b), (at, value) in zip(points, one.values.items(), strict=True)]
        parts += [f'<path class="{one.kind}" d="M{left + 20 + place * 180} 12h26"/>', text(left + 52 + place * 180, 16, one.words)]
    return svg(bottom + 40, "".join(parts + labels), kind="tall")


def _segment_axis(names: Sequence[str], x: Axis, y: float) -> str:
    """Numbers of layers at their first segment, as many as have room."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        first.setdefault(name.split(".")[1] if name.startswith("layers.") else name, place)
    every, drawn = ceil(len(first) / 24), []
    for words, place in first.items():
        clear = min(x(place) - x.start, x.stop - x(place)) > 30
        if not words.isdigit() or (int(words) % every == 0 and clear):
            drawn.append(line(x(place), y, x(place), y + 4, "axis") + text(x(place), y + 16, words, "middle"))
    return "".join(drawn) + text((x.start + x.stop) / 2, y + 34, "segments in the order they run; a number marks a layer's first", "middle")


SQUARE = 430
"""Width of the scatter and of the histogram, in pixels."""


def scatter(left: "np.ndarray", right: "np.ndarray") -> str:
    """Left across, right up, both finite; equal ones lie on the diagonal."""
    low, high = float(min(left.min(), right.min())), float(max(left.max(), right.max()))
    low, high = (low, high) if high > low else (low - 1, high + 1)
    x, y = Axis(low, high, 56, SQUARE - 8), Axis(low, high, SQUARE - 44, 8)
    points = "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in zip(left.tolist(), right.tolist(), strict=True))
    parts = [line(x(low), y(low), x(high), y(high), "limit"), line(56, SQUARE - 44, SQUARE - 8, SQUARE - 44, "axis"), line(56, 8, 56, SQUARE - 44, "axis")]
    for tick in x.ticks(5):
        parts += [text(x(tick), SQUARE - 28, f"{tick:.3g}", "middle"), text(50, y(tick) + 4, f"{tick:.3g}", "end"), line(x(tick), SQUARE - 44, x(tick), SQUARE - 40, "axis"), line(52, y(tick), 56, y(tick), "axis")]
    parts += [f'<path class="dots" d="{points}"/>', text(SQUARE / 2 + 20, SQUARE - 8, "logit of the left side", "middle"), text(62, 16, "logit of the right side")]
    return svg(SQUARE, "".join(parts), SQUARE)


def histogram(counts: Sequence[int], low: float, high: float) -> str:
    """Bars of counts between two values; heights grow with the logarithm, so that a single one shows."""
    base, most = SQUARE - 44, log(1 + max(counts, default=0)) or 1.0
    x, wide = Axis(low, high, 16, SQUARE - 16), (SQUARE - 32) / len(counts)
    parts = [line(16, base, SQUARE - 16, base, "axis")]
    for place, count in enumerate(counts):
        tall = log(1 + count) / most * (base - 24)
        from_, to = (low + (high - low) * edge / len(counts) for edge in (place, place + 1))
        parts.append(f'<rect class="bar" x="{16 + place * wide:.1f}" y="{base - tall:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}"><title>{from_:.3g} to {to:.3g}: {count}</title></rect>')
    for tick in (low, 0.0, high):
        parts += [line(x(tick), base, x(tick), base + 4, "axis"), text(min(max(x(tick), 24), SQUARE - 24), base + 16, f"{tick:.2g}", "middle")]
    parts += [text(SQUARE / 2, SQUARE - 8, "right minus left, in logits", "middle"), text(16, 16, f"{max(counts, default=0):,} in the tallest bar")]
    return svg(SQUARE, "".join(parts), SQUARE)
