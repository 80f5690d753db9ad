"""Pictures with segments down and tokens across, as inline SVG: distances, and who goes to other experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, inf, isfinite, log10

from ..plots import WIDTH, Axis, line, logarithm, number, power, svg, text
from .columns import ABSENT, Columns, Folded

NAMES = 170
"""Width of segment names, in pixels."""
SHADES = 8
"""Of a heat map, on either side of the tolerance."""
REACH = 6
"""Decades that a scale shows on either side of its tolerance, at most."""
STYLE = """
.cells path{fill:none;shape-rendering:crispEdges}.gone{stroke:var(--ink)}.nan{stroke:var(--ink)}.c{stroke:var(--bar);opacity:.06}
""" + "".join(f".c{one}{{stroke:var(--bar);opacity:{0.12 + 0.88 * one / (SHADES - 1):.2f}}}.h{one}{{stroke:var(--warn);opacity:{0.4 + 0.6 * one / (SHADES - 1):.2f}}}" for one in range(SHADES))


@dataclass(frozen=True)
class Ramp:
    """A logarithmic scale around a tolerance. Its ends are exponents of ten."""

    low: float
    high: float
    limit: float
    """The tolerance itself."""

    @classmethod
    def of(cls, values: Sequence[float], limit: float) -> "Ramp":
        known = [log10(value) for value in values if 0 < value < inf]
        middle = logarithm(limit, min(known, default=0.0))
        middle = middle if isfinite(middle) else 0.0
        low, high = min([*known, middle]), max([*known, middle])
        return cls(max(min(floor(low), ceil(middle) - 1), floor(middle) - REACH), min(max(ceil(high), floor(middle) + 1), ceil(middle) + REACH), limit)

    def shade(self, value: float, limit: float) -> str:
        """A class of the style: within the tolerance, beyond it, equal, or not a number."""
        if not isfinite(value):
            return "nan"
        if value <= 0:
            return "c"
        place = logarithm(value, self.low)
        middle = min(max(logarithm(limit, self.low), self.low), self.high)
        begin, end, name = (self.low, middle, "c") if value <= limit else (middle, self.high, "h")
        share = (place - begin) / max(end - begin, 1e-9)
        return f"{name}{min(SHADES - 1, max(0, floor(share * SHADES)))}"


@dataclass(frozen=True)
class HeatRow:
    name: str
    limit: float
    """Of one token of this segment."""
    cells: Folded


def heatmap(rows: Sequence[HeatRow], columns: Columns, limit: float, marked: str | None, ids: Sequence[int], decoded: int = 0) -> str:
    """Segments down, tokens across; fuller is further apart, the second colour beyond the tolerance.

    :param limit: of a token, where its segment has none of its own: the middle of the scale. :param ids: of the tokens, where each has a column of its own. :param decoded: tokens at the end that went in one by one.
    """
    height, width = 18 if len(rows) <= 24 else 14 if len(rows) <= 48 else 8, max(1, min(22, (WIDTH - NAMES - 10) // len(columns)))
    ramp = Ramp.of([value for row in rows for value in row.cells.worst.tolist()], limit)
    top, parts = 34, [legend(ramp)]
    every = ceil(13 / height)
    at = next((place for place, row in enumerate(rows) if row.name == marked), None)
    for place, row in enumerate(rows):
        y = top + place * height
        if place == at:
            parts.append(text(NAMES - 6, y + height / 2 + 4, f"▸ {row.name}", "end", "at"))
        elif place % every == 0 and (at is None or abs(place - at) >= every):
            parts.append(text(NAMES - 6, y + height / 2 + 4, row.name, "end"))
        parts.append(f'<g class="cells" stroke-width="{height - 1}" transform="translate({NAMES} {y + height / 2:.1f})">{_cells(row, columns, width, ramp, ids)}</g>')
    bottom, stop = top + len(rows) * height, NAMES + len(columns) * width
    if at is not None:
        parts.append(f'<rect class="warn" x="{NAMES - 1}" y="{top + at * height - 1}" width="{stop - NAMES + 2}" height="{height + 1}"/>')
    if decoded and columns.single:
        x = stop - decoded * width
        parts.append(line(x, top - 2, x, bottom + 3, "axis"))
    parts.append(_positions(columns, width, bottom, "; what is right of the line went in one by one" if decoded and columns.single else ""))
    return svg(bottom + 38, "".join(parts), max(stop + 10, 760), "tall")


def _cells(row: HeatRow, columns: Columns, width: int, ramp: Ramp, ids: Sequence[int]) -> str:
    made = []
    for column, (value, prompt, out, tokens) in enumerate(zip(*(one.tolist() for one in (row.cells.worst, row.cells.prompt, row.cells.left_out, row.cells.tokens)), strict=True)):
        if not tokens:
            continue
        where = f"{row.name}, {columns.told(column)}" + (f" (id {ids[column]})" if columns.single and column < len(ids) else "")
        if value == ABSENT:
            told = "goes to other experts" if tokens == 1 else f"all {tokens} go to other experts"
        else:
            told = (number(value) if value else "equal") + ("" if columns.single else f" in prompt {prompt}") + (f"; {out} of {tokens} go to other experts" if out else "")
            made.append(f'<path class="{ramp.shade(value, row.limit)}" d="M{column * width} 0h{width}"><title>{escape(where)}: {told}</title></path>')
        if out:
            title = f"<title>{escape(where)}: {told}</title>" if value == ABSENT else ""
            made.append(f'<path class="gone" stroke-width="3" stroke-opacity="{max(0.2, 0.8 * out / tokens):.1f}" d="M{column * width} 0h{width}">{title}</path>')
    return "".join(made)


def legend(ramp: Ramp) -> str:
    """The scale, the tolerance on it, and what is not on it."""
    cell, middle, end = 16, NAMES + SHADES * 16, NAMES + 2 * SHADES * 16
    shades = [f"{side}{one}" for side in "ch" for one in range(SHADES)]
    cells = "".join(f'<path class="{kind}" d="M{place * cell} 0h{cell}"/>' for place, kind in enumerate(shades))
    parts = [f'<g class="cells" stroke-width="10" transform="translate({NAMES} 7)">{cells}</g>', line(middle, 0, middle, 15, "here")]
    parts += [text(NAMES, 25, power(ramp.low)), text(middle, 25, f"tolerance {ramp.limit:.2g}", "middle"), text(end, 25, power(ramp.high), "end")]
    for at, kind, thick, words in ((end + 24, "c", 10, "equal"), (end + 90, "nan", 10, "not a number"), (end + 192, "gone", 3, "other experts")):
        parts.append(f'<g class="cells" stroke-width="{thick}" transform="translate({at} 7)"><path class="{kind}" d="M0 0h14"/></g>{text(at + 18, 11, words)}')
    return "".join(parts)


def _positions(columns: Columns, width: int, y: float, note: str = "") -> str:
    """The axis of tokens below a picture."""
    last = columns.edges[-1]
    axis = Axis(0, last, NAMES, NAMES + len(columns) * width)
    room = max(1, int((axis.stop - axis.start) // 60))
    ticks = [tick for tick in axis.ticks(min(room, 10)) if tick < last and tick == round(tick)]
    shift = width / 2 if columns.single else 0
    marks = "".join(line(axis(tick) + shift, y, axis(tick) + shift, y + 4, "axis") + text(axis(tick) + shift, y + 16, f"{tick:.0f}", "middle") for tick in ticks)
    whose = f"position in prompt {columns.prompts[0]}" if columns.single else f"position in {len(columns.prompts)} prompts, the worst of each column"
    return marks + text(NAMES, y + 32, whose + note)


@dataclass(frozen=True)
class Routed:
    """One layer's row: with the left's values, and on its own; None where a walk tells nothing."""

    name: str
    cells: tuple[Folded | None, Folded | None]
    shares: tuple[float | None, float | None]


def routing(rows: Sequence[Routed], columns: Columns, limit: float, marked: str | None) -> str:
    """Layers down; first the tokens that go to other experts, then their share. Upper halves: left's values; lower: own."""
    height, top, strip = 17, 30, 440
    width = max(1, min(14, strip // len(columns)))
    start = NAMES + len(columns) * width + 24
    most = max([share for row in rows for share in row.shares if share is not None] + [1.25 * limit, 1e-3])
    share = Axis(0, most, start, start + 170)
    parts = [f'<rect class="bar" x="{NAMES}" y="3" width="14" height="8"/>', text(NAMES + 20, 11, "given the left's values"), f'<rect class="soft" x="{NAMES + 160}" y="3" width="14" height="8"/>', text(NAMES + 180, 11, "each side on its own values")]
    parts.append(text(start + 178, top - 5, "given / own"))
    for place, row in enumerate(rows):
        y = top + place * height
        parts.append(text(NAMES - 6, y + 12, row.name, "end", "at" if row.name == marked else ""))
        for half, kind, folded, part in zip((0, 7), ("bar", "soft"), row.cells, row.shares, strict=True):
            parts += [f'<rect class="{kind}" x="{NAMES + begin * width}" y="{y + 1 + half}" width="{(end - begin) * width}" height="6" opacity="{depth}"/>' for begin, end, depth in _runs(folded)]
            if part is not None:
                parts.append(f'<rect class="{kind}" x="{start}" y="{y + 1 + half}" width="{share(part) - start:.1f}" height="6"/>')
        told = " / ".join("–" if part is None else f"{part:.2%}" for part in row.shares)
        parts.append(text(start + 178, y + 12, told))
    bottom = top + len(rows) * height + 2
    parts += [line(NAMES, bottom, NAMES + len(columns) * width, bottom, "grid"), line(start, top, start, bottom, "axis"), line(share(limit), top, share(limit), bottom, "limit"), text(share(limit), top - 5, f"tolerance {limit:.1%}", "end" if limit > 0.6 * most else "start")]
    parts.append(_positions(columns, width, bottom))
    return svg(bottom + 38, "".join(parts), start + 290, "tall")


def _runs(folded: Folded | None) -> list[tuple[int, int, float]]:
    """Columns with tokens that go elsewhere: first, end and opacity, in quarters of the tokens; equal neighbours joined."""
    found: list[tuple[int, int, float]] = []
    for column, (out, tokens) in enumerate([] if folded is None else zip(folded.left_out.tolist(), folded.tokens.tolist(), strict=True)):
        if out:
            depth = ceil(4 * out / tokens) / 4
            joined = found and found[-1][1:] == (column, depth)
            found.append((found.pop()[0] if joined else column, column + 1, depth))
    return found
