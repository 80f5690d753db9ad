"""The report: one self-contained page, well-formed, and JSON with the same numbers."""

import re
from html.parser import HTMLParser

import pytest

from calibration.report import Quality, Report, Sensitivity, WeightError, render, write_report
from calibration.table import ExpertRanges, Range, Table
from exporter.plan import files
from exporter.plan.manifest import Source

VOID = {"meta", "line", "rect", "br"}
OPTIONAL = {"tr", "td", "th", "html", "body"}


class Nesting(HTMLParser):
    """Refuses a tag that is closed out of turn; those whose end HTML lets go are passed over."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID | OPTIONAL:
            assert self.open.pop() == tag


def report(**changes):
    seen = Range(amax=2.0, maximum=3.0, count=1000, error=0.012, histogram=(10, 5, 1), top=4.0)
    experts = ExpertRanges((900, 3), (1.0, 1.5), (1.0, 0.2), (0.02, 0.09), 1.5, {"1": "only 3 tokens were routed to it, fewer than 32"})
    table = Table(Source("model", "f" * 64, 3, 4), "c", "fp32", "mse", "p", 12, 2, 903, 32, {"layers.1.attention.q_a": seen}, {"layers.1.moe_ffn.experts.down": experts}, "r", {})
    made = {
        "scheme": "int8", "model": "a <model> & more", "smooth": 0.5, "table": table,
        "weights": (WeightError("layers.1.attention.q_a", 0.0071, 4000, 1010),),
        "activation_errors": {"layers.1.attention.q_a": 0.012}, "sensitivity": (Sensitivity("layers.1.moe_ffn", 0.0021, True),),
        "quality": Quality(903, 10.0, 10.05, 0.0033), "float_bytes": 4_000_000, "quantized_bytes": 1_010_000, "measured": "m",
    }  # fmt: skip
    return Report(**made | changes)


@pytest.mark.parametrize("changes", [{}, {"table": None, "weights": (), "activation_errors": {}, "sensitivity": (), "quality": None, "smooth": None}], ids=["everything", "nothing"])
def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(changes):
    page, parser = render(report(**changes)), Nesting()
    parser.feed(page)
    assert parser.open == []
    assert not parser.links
    assert not re.search(r"https?:|@import|url\(|<script", page)
    assert "a &lt;model&gt; &amp; more" in page


def test_the_page_tells_what_the_figures_are():
    page = render(report())
    for told in ("10.0000 before, 10.0500 after (+0.500 %), 903 held-out tokens", "0.0033 nats", "alpha 0.5", "1.0 MB after 4.0 MB: 0.25", "1.200%", "0.710%", "3 to 900", "0.0021", "1 of 1 segments"):
        assert told in page, told
    assert page.count("only 3 tokens were routed to it, fewer than 32") == 2, "in the plot and in words"


def test_json_reads_back_equal(tmp_path):
    _, data = write_report(report(), tmp_path)
    assert files.read_record(Report, data) == report()
