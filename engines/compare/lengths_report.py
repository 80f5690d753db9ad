"""Parity over long contexts as one self-contained page: length by depth."""

from html import escape

from ..page import document, section, table
from ..plots import number, svg, text
from . import maps
from .lengths import DEPTHS, LengthsComparison

CELL, ROW = 56, 24
"""Of the map, in pixels."""


def render(made: LengthsComparison) -> str:
    sections = (_verdict(made), _map(made), _table(made))
    return document("Long contexts", f"Long contexts: {made.left} and {made.right}", "".join(sections), maps.STYLE)


def _verdict(made: LengthsComparison) -> str:
    fault = f"<p>{escape(made.first_divergent.told())}</p>" if made.first_divergent else ""
    rows = [(one.name, f"{whole.beyond_original:,}", whole.chunk, number(one.relative_l2), number(one.kl), f"{one.top1_agreement:.2%}", number(one.max_abs)) for one, whole in zip(made.outputs, made.lengths, strict=True)]
    head = ("tokens", "beyond the original context", "at a time", "relative L2", "KL, nats", "top-1 agreement", "max abs")
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in made.notes)
    told = f"Both sides read the same tokens from an empty cache. Allowed are a relative L2 of {number(made.tolerance.relative_l2)} and a KL of {number(made.tolerance.kl)}: {escape(made.tolerance.because)}."
    return section(f"Verdict: {made.verdict}", told, fault, table(head, rows), notes)


def _map(made: LengthsComparison) -> str:
    limit = made.tolerance.relative_l2
    ramp = maps.Ramp.of([depth.relative_l2 for one in made.lengths for depth in one.depths], limit)
    parts, top = [maps.legend(ramp)], 36
    for place, one in enumerate(made.lengths):
        y = top + place * ROW
        parts.append(text(maps.NAMES - 6, y + ROW / 2 + 4, f"{one.tokens:,} tokens", "end"))
        cells = [
            f'<path class="{ramp.shade(depth.relative_l2, limit)}" d="M{column * CELL} 0h{CELL - 1}"><title>{escape(depth.name)}: relative L2 {number(depth.relative_l2)}, KL {number(depth.kl)}</title></path>'
            for column, depth in enumerate(one.depths)
        ]
        parts.append(f'<g class="cells" stroke-width="{ROW - 2}" transform="translate({maps.NAMES} {y + ROW / 2:.1f})">{"".join(cells)}</g>')
    bottom = top + len(made.lengths) * ROW
    parts += [text(maps.NAMES + (part + 0.5) * CELL, bottom + 14, f"{100 * (part + 1) // DEPTHS}%", "middle") for part in range(DEPTHS)]
    sentence = "A row is a context, a cell a tenth of it: the relative L2 of the logits there, on a logarithmic scale; the second colour is beyond the tolerance. What grows to the right is an error of positions, what grows downward one of YaRN."
    return section("Length by depth", sentence, svg(bottom + 24, "".join(parts), maps.NAMES + DEPTHS * CELL + 10, "tall"))


def _table(made: LengthsComparison) -> str:
    head = ("tokens", *(f"{100 * (part + 1) // DEPTHS}%" for part in range(DEPTHS)))
    rows = [(f"{one.tokens:,}", *(number(depth.relative_l2) for depth in one.depths)) for one in made.lengths]
    kl = [(f"{one.tokens:,}", *(number(depth.kl) for depth in one.depths)) for one in made.lengths]
    return section("Figures", "Of each cell.", "<h3>Relative L2</h3>", table(head, rows), "<h3>Mean KL, in nats</h3>", table(head, kl))
