"""A report's page: self-contained HTML, its look, sections and tables. What stands in sentences is HTML already."""

from collections.abc import Iterable
from html import escape

STYLE = """:root{--ink:#1c2330;--paper:#fbfbf9;--line:#d8d8d2;--bar:#2f6f8f;--soft:#9cc3d5;--warn:#c4532d}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6ea;--paper:#15181d;--line:#363b44;--bar:#6fb3d2;--soft:#3c6175;--warn:#e58a66}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:1000px;margin:auto;padding:1.5rem}
h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}.wide{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
svg{display:block;max-width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}.bar{fill:var(--bar)}.soft{fill:var(--soft)}.warn{fill:none;stroke:var(--warn);stroke-width:1.5}.tick{stroke:var(--warn);stroke-width:2}"""


def document(title: str, heading: str, body: str, style: str = "") -> str:
    """:param style: rules beside those that all pages share."""
    return f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title><style>{STYLE}{style}</style><main><h1>{escape(heading)}</h1>{body}</main></html>\n"


def section(title: str, sentence: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2><p>{sentence}</p>{''.join(parts)}</section>"


def table(head: Iterable[str], rows: Iterable[Iterable[object]], folded: str | None = None, marked: Iterable[int] = ()) -> str:
    """:param folded: the line that opens it. :param marked: numbers of rows that stand out."""
    stand_out = frozenset(marked)
    body = "".join(("<tr class=over>" if number in stand_out else "<tr>") + "".join(f"<td>{escape(str(cell))}" for cell in row) for number, row in enumerate(rows))
    made = f"<div class=wide><table><tr>{''.join(f'<th>{escape(name)}' for name in head)}{body}</table></div>"
    return f"<details><summary>{escape(folded)}</summary>{made}</details>" if folded else made
