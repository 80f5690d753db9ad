"""The page of a comparison: every section, well-formed, self-contained, and readable whatever the values are."""

import json
import re
import shutil
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors import safe_open

from engines.compare.columns import ABSENT, choose
from engines.compare.compare import Comparison, Evidence
from engines.compare.metrics import Accumulator, Gap
from engines.compare.report import render, write_report
from engines.compare.tolerances import TOLERANCES
from engines.compare.verdict import Divergence
from engines.compare.walk import Walked
from exporter.plan.parallel import Plan

SECTIONS = ["Verdict", "Where: segments × tokens", "How it grows: drift along the model", "Logits: left against right", "Routing: who goes to other experts", "All segments"]
VOID, OPTIONAL = {"meta"}, {"tr", "td", "th", "html"}


class Page(HTMLParser):
    """Refuses a tag that is closed out of turn; keeps headings and what points elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.headings, self.links, self.tags = [], [], [], set()
        self.feed(text)
        assert self.open == []
        self.pictures = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID | OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(text: str) -> Page:
    """A page that needs nothing from elsewhere, and in which every number of a picture is one."""
    page = Page(text)
    assert not page.links
    assert not re.search(r"https?:|@import|url\(|<script", text)
    for node in (node for picture in page.pictures for node in picture.iter()):
        for name, value in node.attrib.items():
            assert not re.search(r"\b(nan|inf|None)\b", value, re.I) or name == "class", (node.tag, node.attrib)
    return page


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"token_ids": np.random.default_rng(seed).integers(2, 128, 12 + seed).tolist()}) + "\n" for seed in range(3)))
    return file


@pytest.fixture
def spoil(engines, tmp_path):
    """``spoil(factor, name)``: two ranks' engines, a norm of layer 2 of both multiplied."""

    def make(factor: float, name: str = "spoiled") -> Path:
        folder = Path(shutil.copytree(engines("v3", 2), tmp_path / name))
        for weights in folder.glob("rank-*/weights.safetensors"):
            with safe_open(weights, "np") as file:
                norm = file.get_tensor("layers.2.moe_ffn.norm")
            data = weights.read_bytes()
            weights.unlink()
            weights.write_bytes(data.replace(norm.tobytes(), (norm * np.float32(factor)).tobytes()))
        return folder

    return make


def test_a_sound_pair_has_every_section(moetrt, engines, prompts, tmp_path):
    report = tmp_path / "report.html"
    result = moetrt("compare", engines("v3", 2), engines("v3", 2).parent / "graphs", "--prompts", prompts, "--report", report)
    assert result.code == 0
    assert str(report) in result.err
    page = read(report.read_text())
    assert page.headings == [*SECTIONS, "Ranks"], "two ranks have parts to show"
    assert len(page.pictures) == 5, "heat map, drift, scatter, histogram, routing"
    assert "<p class='verdict same'>same</p>" in report.read_text()
    assert "class=over" not in report.read_text()


def test_a_planted_difference_is_marked_where_it_is(moetrt, engines, spoil, prompts, tmp_path):
    report = tmp_path / "report.html"
    assert moetrt("compare", engines("v3", 2), spoil(2, "<b>spoiled & co"), "--prompts", prompts, "--report", report).code == 3
    text = report.read_text()
    heat, drift = read(text).pictures[:2]
    marked = [node.text for node in heat.iter("text") if node.get("class") == "at"]
    assert marked == ["▸ layers.2.moe_ffn"]
    assert [node.text for node in drift.iter("text") if "at" in node.get("class", "").split()] == ["layers.2.moe_ffn"]
    beyond = {node.find("title").text.partition(",")[0] for node in heat.iter("path") if node.get("class", "").startswith("h") and node.find("title") is not None}
    assert beyond == {"layers.2.moe_ffn"}, "no other segment makes anything else of the same values"
    assert "&lt;b&gt;spoiled &amp; co" in text
    assert "<b>" not in text
    assert re.search(r"<tr class=over><td>layers\.2\.moe_ffn<td>update", text)


def test_the_page_counts_prompts_and_tokens_as_its_data_do(moetrt, engines, spoil, prompts, tmp_path):
    moetrt("compare", engines("v3", 2), spoil(2), "--prompts", prompts, "--mode", "segments", "--report", tmp_path / "report.html")
    text, data = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "compare.json").read_text())
    fault = data["first_divergent"]
    assert f"token {fault['token']} of prompt {fault['prompt']}, counted from 0" in text
    assert f"position in prompt {fault['prompt']}" in text
    told = [one for one in data["segments"] if one["token_relative_l2"]]
    assert told
    for one in told:
        assert re.search(rf"<td>{re.escape(one['segment'])}<td>{one['tensor']}(<td>[^<]*)*<td>prompt {one['prompt']}, token {one['token']}<", text), one


def test_what_is_not_a_number_is_drawn_and_breaks_nothing(moetrt, engines, spoil, prompts, tmp_path):
    report = tmp_path / "report.html"
    assert moetrt("compare", engines("v3", 2), spoil(float("nan")), "--prompts", prompts, "--report", report).code == 3
    text = report.read_text()
    page = read(text)
    assert page.headings == [*SECTIONS, "Ranks"]
    assert "not a number" in text
    assert "No pair of logits is finite. " in text
    assert {node.get("class") for node in page.pictures[0].iter("path")} >= {"nan"}


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    report = tmp_path / "report.html"
    report.write_text("before")
    monkeypatch.setattr("engines.compare.maps.heatmap", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(report, made_up(3, [20]))
    assert report.read_text() == "before"
    assert list(tmp_path.iterdir()) == [report]


def made_up(layers: int, lengths: list[int], spoil=lambda values: values, moved: float = 0.01) -> Evidence:
    """Evidence as a walk of such a model would leave it. ``spoil`` changes distances and logits."""
    random = np.random.default_rng(0)
    names = ["embed", *(f"layers.{layer}.{kind}" for layer in range(layers) for kind in ("attention", "dense_ffn" if layer < 3 else "moe_ffn")), "head"]
    distances = {prompt: [spoil((10 ** random.normal(-6, 1, length)).astype(np.float32))] for prompt, length in enumerate(lengths)}
    elsewhere = {prompt: [random.random(length) < moved] for prompt, length in enumerate(lengths)}
    partly = {prompt: [np.where(elsewhere[prompt][0], np.nan, one[0])] for prompt, one in distances.items()}
    tokens, (left, right) = sum(lengths), spoil(random.normal(0, 3, (2, 4096)))

    def walk() -> list[Walked]:
        found = []
        for name in names:
            chosen = name.endswith("moe_ffn")
            gap = partial(Gap, name, tokens=tokens, max_abs=1e-5, dot=1.0, left=1.0, right=1.0, gap=float(spoil(np.array([1e-12]))[0]), worst=(1e-3, len(lengths) - 1, lengths[-1] - 1))
            gaps = {"hidden": gap("hidden", by_token=distances), "update": gap("update", by_token=partly if chosen else distances, changed=3 if chosen else None)}
            found.append(Walked(name, gaps, ranks={side: dict.fromkeys(range(16), 0.0) for side in ("left", "right")}, parts=dict.fromkeys(range(16), 1e-7), moved=elsewhere if chosen else {}))
        return found

    sums = Accumulator("logits", 0.1)
    sums.add(left.reshape(-1, 64), right.reshape(-1, 64))
    side = SimpleNamespace(folder=Path("engines"), arithmetic="fp32", plan=Plan(16))
    limits, fault = TOLERANCES["fp32"], Divergence("layers.1.attention", None, 3, "relative_l2", 1.0, 1e-5, "update", len(lengths) - 1)
    made = Comparison("differ", fault, (), "logits", "engines", "engines", len(lengths), tokens, limits)
    return Evidence(side, side, [[7] * length for length in lengths], limits, (sums,), walk(), walk(), made, [(left, right)])


def test_a_large_model_and_many_prompts_make_a_page_that_still_opens():
    seen = made_up(61, [512] * 128, moved=0.5)
    begin = time.monotonic()
    text = render(seen)
    assert len(text.encode()) < 3e6
    assert time.monotonic() - begin < 60
    assert "in prompt" in text, "a column that stands for many tokens says whose the worst is"
    read(text)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e300], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_value_everywhere_gives_a_page(value):
    read(render(made_up(4, [20, 400], lambda values: np.full_like(values, value))))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2], [160], [161]], ids=str)
def test_any_length_gives_a_page(lengths):
    assert read(render(made_up(4, lengths))).headings == [*SECTIONS, "Ranks"]


def test_nothing_walked_gives_a_page_that_says_so():
    seen = made_up(4, [12])
    seen.segments, seen.drift, seen.pairs = [], [], []
    text = render(seen)
    assert read(text).headings[: len(SECTIONS)] == SECTIONS
    assert text.count("No segment was walked.") == 2


def test_columns_keep_the_worst_of_what_they_stand_for():
    columns = choose([400, 300], 0, 10)
    assert not columns.single
    values = {0: [np.full(400, 0.1)], 1: [np.full(200, 0.2), np.full(100, np.nan)]}
    values[1][0][7] = 9.0
    folded = columns.fold(values)
    assert folded.worst.max() == 9.0
    assert folded.tokens.sum() == 700
    assert folded.left_out.sum() == 100
    place = int(folded.worst.argmax())
    assert columns.edges[place] <= 7 < columns.edges[place + 1]
    assert folded.prompt[place] == 1


def test_a_prompt_that_has_room_stands_alone():
    columns = choose([400, 5], 1, 10)
    assert columns.single
    folded = columns.fold({1: [np.array([0.5, np.nan]), np.array([0.0])]})
    assert folded.worst.tolist() == [0.5, ABSENT, 0.0, ABSENT, ABSENT]
    assert folded.left_out.tolist() == [0, 1, 0, 0, 0]
    assert folded.tokens.tolist() == [1, 1, 1, 0, 0]
