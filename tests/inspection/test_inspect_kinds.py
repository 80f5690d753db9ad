"""Everything that the tool writes or reads is summed up: on one screen, in full as JSON."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engines.inspection import inspect
from engines.inspection.found import Inspection
from engines.inspection.screen import HEIGHT, WIDTH, entry, fit, section, spans
from exporter.models import read_model
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank
from exporter.plan.parallel import Plan, shard

TOLD = {
    "graphs": ("graphs", ["tensor 2, pipeline 1", "fp32, attention absorbed", "8–15", "tokenizer.json"]),
    "graphs/rank-01": ("graphs-rank", ["8–15", "moetrt"]),
    "graphs/manifest.json": ("graphs", ["tensor 2"]),
    "graphs/rank-00/manifest.json": ("graphs-rank", ["tensor 2"]),
    "graphs-int8": ("graphs", ["int8: 34 with static inputs", "by the table"]),
    "engines/ort": ("engines", ["ort, context 128, batch 4", "graphs-int8", "Route → inline × 6", "no collectives"]),
    "engines/ort/rank-00": ("engine-rank", ["ort, context 128", "QuantizedExperts → gather_ort × 3"]),
    "shards": ("shards", ["as the checkpoint has it", "tensor 2", "tensors"]),
    "shards/model0-mp2.manifest.json": ("shards-rank", ["tensor 2"]),
    "shards/model0-mp2.safetensors": ("safetensors", ["BF16", "layers.*"]),
    "calibration.json": ("calibration", ["mse", "360 tokens of 12 prompts", "none: every expert has its own", "widest errors"]),
    "graphs-int8/report.json": ("quantization-report", ["int8, not smoothed", "not measured", "weight error"]),
    "graphs-int8/report.html": ("quantization-report", ["int8, not smoothed"]),
    "bench.json": ("bench", ["665.4 tokens/s (131 to 791.3)", "8.6 peak_rss_over_weights", "a CPU"]),
    "compare.json": ("comparison", ["differ", "layers.2.moe_ffn, rank 1, token 7, relative_l2 0.25, beyond 0.001", "logits: max abs 3.5"]),
    "replay": ("replay", ["layers.2.moe_ffn", "polygraphy run segment.onnx --onnxrt"]),
    "rank.layers.json": ("layers", ["1 products of two int8 factors", "2 × kgen"]),
    "graphs/rank-00/rank.onnx": ("graph", ["moetrt.Experts × 3", "token_ids: int64 [batch, tokens]", "of weights.safetensors"]),
    "engines/ort/rank-00/head.onnx": ("graph", ["none: standard operators alone"]),
    "graphs/rank-00/weights.safetensors": ("safetensors", ["pad tensors to pages", "layers.*.moe_ffn.experts.gate_up"]),
    "graphs/tokenizer.json": ("file", ["listed by"]),
    ".": ("build", ["engines/ort", "graphs-int8", "comparison: differ, first at layers.2.moe_ffn", "replay of layers.2.moe_ffn"]),
    "engines": ("build", ["ort", "weights"]),
    "../model": ("checkpoint", ["deepseek_v3", "4 layers (1 dense, 3 of experts)", "sigmoid with a correction bias", "2 of 4 groups", "YaRN × 4 from 32", "fingerprint"]),
    "../model/config.json": ("config", ["config.json only"]),
}
"""Path in the build → kind, and what the summary must tell."""


@pytest.mark.parametrize("path", TOLD)
@pytest.mark.parametrize("verify", [False, True], ids=["seen", "verified"])
def test_what_the_tool_writes_is_told_on_one_screen(moetrt, build, monkeypatch, path, verify):
    monkeypatch.chdir(build)
    result = moetrt("inspect", path, *(["--verify"] if verify else []))
    kind, told = TOLD[path]
    assert result.code == 0, result.err
    lines = result.out.rstrip("\n").split("\n")
    assert lines[0].split(": ", 1)[1].startswith(kind)
    flat = " ".join(result.out.split())
    for words in told:
        assert words in flat
    assert len(lines) <= HEIGHT
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("path", TOLD)
def test_json_is_one_document_with_the_record_in_full(moetrt, build, path):
    report = json.loads(moetrt("inspect", build / path, "--json").out)
    assert report["kind"] == TOLD[path][0]
    assert report["verified"] is False
    if report["kind"] == "build":
        assert report["contents"]
    else:
        assert report["record"]


def test_json_holds_every_rank_and_file_of_a_set(build):
    record = inspect(build / "engines/ort").record
    written = json.loads((build / "engines/ort/rank-01/manifest.json").read_text())
    assert record["ranks"]["rank-01"] == written
    assert set(record["ranks"]) == {"rank-00", "rank-01"}


def test_a_table_alone_in_a_folder_is_the_folder(build, tmp_path):
    shutil.copy(build / "calibration.json", tmp_path / "calibration.json")
    assert inspect(tmp_path).kind == "calibration"


def test_experts_with_a_pooled_range_are_named(build, tmp_path):
    table = json.loads((build / "calibration.json").read_text())
    table["experts"]["layers.3.moe_ffn.experts.down"]["fallbacks"] = {"7": "3 tokens"}
    (tmp_path / "table.json").write_text(json.dumps(table))
    found = inspect(tmp_path / "table.json")
    assert found.facts["pooled ranges"] == "1 experts"
    assert found.lists["pooled"] == ("layers.3.moe_ffn.experts.down[7]: 3 tokens",)


def test_a_comparison_that_says_more_than_is_known_is_shown(build, tmp_path):
    data = json.loads((build / "compare.json").read_text()) | {"kind": "comparison", "mode": "segments", "left": {"path": "build/ort", "scheme": "int8"}, "right": "model", "routing": [1, 2]}
    (tmp_path / "other.json").write_text(json.dumps(data))
    found = inspect(tmp_path / "other.json")
    assert found.facts["left"] == "build/ort"
    assert found.facts["mode"] == "segments"
    assert found.lists["also"] == ("routing: 2 entries",)


def test_a_build_tells_what_is_damaged_in_it_and_goes_on(spoilable):
    (spoilable / "graphs/rank-00/weights.safetensors").write_bytes(b"short")
    found = {Path(one.path).name: one for one in inspect(spoilable).contents}
    assert found["graphs"].kind == "damaged"
    assert "weights.safetensors has 5 bytes" in found["graphs"].line
    assert found["graphs-int8"].kind == "graphs"


def test_a_set_that_lacks_a_rank_is_shown_and_not_verified(moetrt, spoilable):
    shutil.rmtree(spoilable / "graphs/rank-01")
    result = moetrt("inspect", spoilable / "graphs")
    assert result.code == 0
    assert "1 of the 2 ranks" in " ".join(result.out.split())
    assert moetrt("inspect", spoilable / "graphs", "--verify").code == 1
    assert moetrt("inspect", spoilable / "graphs/rank-00", "--verify").code == 0


def test_an_unfinished_shard_is_told(spoilable):
    (spoilable / "shards/model1-mp2.manifest.json").unlink()
    notes = inspect(spoilable / "shards").notes
    assert "1 of 2 shards" in notes[0]
    assert "model1-mp2.safetensors" in notes[1]


def test_a_lone_rank_may_lie_under_another_name(build, tmp_path):
    shutil.copytree(build / "graphs/rank-01", tmp_path / "mine")
    found = inspect(tmp_path / "mine", verify=True)
    assert (found.kind, found.ranks[0]["rank"]) == ("graphs-rank", 1)


def test_many_ranks_share_a_row_by_stage():
    rows = [{"rank": rank, "layers": [rank // 8 * 30, rank // 8 * 30 + 30], "experts": [rank % 8 * 32, rank % 8 * 32 + 32], "files": 125, "bytes": 10**9 + rank} for rank in range(16)]
    lines = Inspection("x", "graphs", "", {}, ranks=tuple(rows)).summary().split("\n")
    assert [line.split() for line in lines[2:]] == [["0–7", "0–29", "0–255", "125", "1,000.0"], ["8–15", "30–59", "0–255", "125", "1,000.0"]]


def test_the_16_ranks_of_the_large_model_fit_one_screen(build, tmp_path, monkeypatch):
    config, plan = read_model(Path(__file__).parents[2] / "tests/data/deepseek-v3").config, Plan(4, 4)
    first = files.read_record(GraphsRank, build / "graphs/rank-00/manifest.json")
    for rank in range(plan.ranks):
        record = replace(first, rank=rank, plan=plan, config=config, shard=shard(config, plan, rank), files={})
        files.write_record(tmp_path / f"graphs/rank-{rank:02d}/manifest.json", record)
    records.write_set("graphs", GraphsRank, tmp_path / "graphs", {})
    monkeypatch.chdir(tmp_path)
    lines = inspect(Path("graphs"), verify=True).summary().split("\n")
    assert len(lines) <= HEIGHT
    assert max(map(len, lines)) <= WIDTH
    assert [line.split()[:4] for line in lines if line.split()[0] in ("0–3", "4–7", "8–11", "12–15")] == [
        ["0–3", "0–15", "0–127", "0–255"],
        ["4–7", "16–30", "0–127", "0–255"],
        ["8–11", "31–45", "0–127", "0–255"],
        ["12–15", "46–60", "0–127", "0–255"],
    ]


def test_parameters_are_counted_as_published(moetrt):
    root = Path(__file__).parents[2]
    assert "671.0 billion, of which 36.6 billion" in moetrt("inspect", root / "tests/data/deepseek-v3").out
    assert "15.7 billion" in moetrt("inspect", root / "tests/data/deepseek-v2-lite").out


def test_lists_are_cut_with_their_count_and_the_longest_first():
    text = fit(["title"], [section("short", ["a", "b"]), section("long", range(100))], height=12)
    lines = text.split("\n")
    assert len(lines) == 12
    assert lines[1].split() == ["short", "a"]
    assert lines[-1].strip() == "… and 92 more"


def test_long_values_are_wrapped_under_themselves():
    assert all(len(line) <= WIDTH for line in entry("what", "word " * 60))
    assert entry("what", "word " * 60)[1].startswith(" " * 16 + "word")
    assert spans([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"


def test_an_inspection_is_frozen_data(build):
    found = inspect(build / "bench.json")
    assert replace(found, path="x").summary().startswith("x: bench")
