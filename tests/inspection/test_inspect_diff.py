"""`inspect --diff`: what two records say differently, field by field; 0 where they are the same, 3 where not."""

import json
import shutil

import pytest

from engines.inspection.diff import diff
from engines.inspection.screen import HEIGHT, WIDTH
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


@pytest.fixture(scope="module")
def other(build, tmp_path_factory):
    """Other things of the same kinds: one rank, another precision, another checkpoint, another table."""
    folder = tmp_path_factory.mktemp("other")
    export_model(ExportRequest(build.parent / "model", folder / "tp1", Plan(1)))
    _edited(build / "graphs", folder / "fp16", lambda record: record.update(precision="fp16"))
    _edited(build / "graphs", folder / "noq", lambda record: (record["config"].update(q_lora=None), record["source"].update(fingerprint="0" * 64)))
    table = json.loads((build / "calibration.json").read_text())
    table["linears"]["layers.0.attention.q_a"]["amax"] *= 2
    table["method"] = "max"
    (folder / "table.json").write_text(json.dumps(table))
    bench = json.loads((build / "bench.json").read_text())
    (folder / "bench.json").write_text(json.dumps(bench | {"decode_tokens_per_second": 600.0}))
    return folder


def _edited(source, target, edit):
    """The same graphs, whose manifests say something else."""
    shutil.copytree(source, target)
    (target / "manifest.json").unlink()
    for path in target.glob("rank-*/manifest.json"):
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))


def places(found):
    return {one.where: (one.left, one.right) for one in found.differences}


@pytest.mark.parametrize("path", ["graphs", "graphs/rank-00", "engines/ort", "shards", "calibration.json", "bench.json", "compare.json", "graphs-int8/report.json", "../model", "../model/config.json", "rank.layers.json", "replay"])
def test_what_is_the_same_is_said_to_be_with_code_0(moetrt, build, tmp_path, path):
    source = (build / path).resolve()
    again = tmp_path / source.name
    shutil.copytree(source, again) if source.is_dir() else shutil.copy(source, again)
    result = moetrt("inspect", build / path, "--diff", again, "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report["same"] is True
    assert report["differences"] == []
    assert "same" in moetrt("inspect", build / path, "--diff", again).out


def test_another_plan_is_told_by_what_ranks_own_and_by_files(moetrt, build, other):
    result = moetrt("inspect", build / "graphs", "--diff", other / "tp1")
    assert result.code == 3
    flat = " ".join(result.out.split())
    assert "plan.tensor 2 → 1" in flat
    assert "ranks.rank-00.heads 0–1 → 0–3" in flat
    assert "only left: 12: rank-*/rank.onnx" in flat


def test_another_precision_and_another_checkpoint_are_told_by_their_fields(build, other):
    assert places(diff(build / "graphs", other / "fp16"))["precision"] == ("fp32", "fp16")
    found = places(diff(build / "graphs", other / "noq"))
    assert found["config.q_lora"] == (32, None)
    assert "source.fingerprint" in found


def test_a_quantised_set_differs_in_its_quantisation(build):
    left, right = places(diff(build / "graphs", build / "graphs-int8"))["quantization"]
    assert left is None
    assert right["scheme"] == "int8"


def test_engines_differ_in_their_lowerings_by_count(build):
    found = places(diff(build / "engines/ort", build / "engines/weights"))
    assert found["lowerings.QuantizedExperts → gather_ort"] == (6, None)
    assert found["quantization.scheme"] == ("int8", "int8-weights")


def test_graphs_and_the_engines_built_from_them_are_held_together(moetrt, build):
    assert moetrt("inspect", build / "graphs-int8", "--diff", build / "engines/ort").code == 0
    assert moetrt("inspect", build / "engines/ort", "--diff", build / "graphs-int8").code == 0
    found = places(diff(build / "graphs", build / "engines/ort"))
    assert {"quantization", "graphs.rank-00", "graphs.rank-01"} <= set(found)


def test_graphs_and_their_checkpoint_are_held_together(moetrt, build, other):
    assert moetrt("inspect", build.parent / "model", "--diff", build / "graphs").code == 0
    assert "source.fingerprint" in places(diff(build.parent / "model", other / "noq"))


def test_ranges_that_moved_are_told_with_by_how_much(moetrt, build, other):
    result = moetrt("inspect", build / "calibration.json", "--diff", other / "table.json")
    assert result.code == 3
    assert "mse → max" in result.out
    assert "(+100.0%)" in result.out
    assert set(places(diff(build / "calibration.json", other / "table.json"))) == {"method", "linears.layers.0.attention.q_a"}


def test_figures_of_benchmarks_are_told_with_by_how_much(moetrt, build, other):
    assert "decode_tokens_per_second: 665.4 → 600 (-9.8%)" in moetrt("inspect", build / "bench.json", "--diff", other / "bench.json").out


def test_one_changed_tensor_of_a_checkpoint_shows_in_its_fingerprint(build, spoiled):
    model = spoiled("v3")
    path = next(iter(sorted(model.glob("*.safetensors"))))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert set(places(diff(build.parent / "model", model))) == {"source.fingerprint"}


def test_a_rank_is_held_against_its_like_in_a_set(build, other):
    assert diff(build / "graphs/rank-01", build / "graphs").same
    assert {"ranks.heads", "ranks.experts"} <= set(places(diff(build / "graphs/rank-00", build / "graphs/rank-01")))


@pytest.mark.parametrize(("left", "right"), [("graphs", "graphs-int8"), ("engines/ort", "engines/weights"), ("calibration.json", "{other}/table.json"), ("graphs", "{other}/tp1"), ("graphs", "{other}/noq")])
def test_differences_fit_one_screen(moetrt, build, other, monkeypatch, left, right):
    monkeypatch.chdir(build)
    lines = moetrt("inspect", left, "--diff", right.format(other=other)).out.rstrip().split("\n")
    assert len(lines) <= HEIGHT
    assert max(map(len, lines[2:])) <= WIDTH


@pytest.mark.parametrize(("left", "right"), [("graphs", "calibration.json"), ("shards", "graphs"), (".", "."), ("bench.json", "compare.json")])
def test_kinds_that_have_nothing_in_common_are_refused(moetrt, build, left, right):
    result = moetrt("inspect", build / left, "--diff", build / right)
    assert result.code == 2
    assert "of the kind" in result.err
    assert result.out == ""
