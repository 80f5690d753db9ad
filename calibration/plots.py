"""Plots of ranges on a logarithmic scale, and a heat map of experts, as inline SVG."""

from collections.abc import Sequence
from html import escape
from math import log10

from engines.plots import END, LABEL, ROW, WIDTH, label, svg

CELL_WIDTH = 24


def spans(rows: Sequence[tuple[str, float, float]]) -> str:
    """A bar from the plot's least value to the first number, and a tick at the second, on a logarithmic scale."""
    known = [value for _, *pair in rows for value in pair if value > 0]
    if not known:
        return ""
    low, high = log10(min(known)) - 0.1, log10(max(known)) + 0.01
    row = ROW if len(rows) <= 80 else 5

    def place(value: float) -> float:
        return LABEL + (log10(max(value, 10**low)) - low) / max(high - low, 1e-9) * (WIDTH - LABEL - 10)

    body = ""
    for number, (name, first, second) in enumerate(rows):
        y, title = number * row, f"<title>{escape(name)}: range {first:.4g}, maximum {second:.4g}</title>"
        named = label(name, y) if row == ROW else ""
        body += f'{named}<rect class="bar" x="{LABEL}" y="{y + 1}" width="{place(first) - LABEL:.1f}" height="{max(2, row - 6)}">{title}</rect>'
        body += f'<line class="tick" x1="{place(second):.1f}" x2="{place(second):.1f}" y1="{y}" y2="{y + max(3, row - 4)}"/>'
    return svg(len(rows) * row, body)


def heat(rows: Sequence[tuple[str, Sequence[int], frozenset[int], dict[str, str]]]) -> str:
    """One row of cells each: name, values, outlined cells and their titles; fuller is stronger, by the row's largest; least and most at the end."""
    cells = max((len(values) for _, values, *_ in rows), default=1)
    width = min(CELL_WIDTH, (WIDTH - LABEL - END) / cells)
    body = ""
    for number, (name, values, outlined, reasons) in enumerate(rows):
        y, most = number * ROW, max(values, default=0) or 1
        body += label(name, y)
        for cell, value in enumerate(values):
            why = f"; {reasons.get(str(cell), '')}" if cell in outlined else ""
            mark = f'<rect class="warn" x="{LABEL + cell * width + 1:.1f}" y="{y + 2}" width="{max(width - 2, 1):.1f}" height="{ROW - 4}"/>' if cell in outlined else ""
            body += f'<rect class="bar" opacity="{0.08 + 0.92 * value / most:.2f}" x="{LABEL + cell * width:.1f}" y="{y + 1}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 2}"><title>{escape(name)}, expert {cell}: {value} tokens{escape(why)}</title></rect>{mark}'
        body += f'<text x="{LABEL + cells * width + 6:.1f}" y="{y + 12}">{min(values, default=0):,} to {max(values, default=0):,}</text>'
    return svg(len(rows) * ROW, body)
