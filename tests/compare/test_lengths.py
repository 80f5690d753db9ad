"""Long contexts: parity by length and depth, past the context before YaRN, in bounded steps."""

import json

import pytest
import tiny

from engines.build import EngineRequest, build_engines
from engines.compare.lengths import SCORES, chunk_for, read_lengths
from exporter.errors import UsageError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A checkpoint of 2,048 positions, 32 before YaRN, and its engines."""
    folder = tmp_path_factory.mktemp("long")
    yarn = tiny.FAMILIES["v3"]["rope_scaling"] | {"factor": 64}
    tiny.write_checkpoint(folder / "model", tiny.tiny_config("v3", num_hidden_layers=2, max_position_embeddings=2048, rope_scaling=yarn))
    export_model(ExportRequest(folder / "model", folder / "graphs", Plan(2)))
    build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort"))
    return folder


def test_lengths_are_read_as_contexts_are_named():
    assert read_lengths("8k, 2K,100,2048") == (100, 2048, 8192)
    for wrong in ("", "k", "1", "2m", "-2k", "2k,,8k", "1.5k"):
        with pytest.raises(UsageError, match="--lengths"):
            read_lengths(wrong)


def test_a_step_is_small_enough_for_the_references_scores():
    assert chunk_for(2048, 2) == 256
    assert chunk_for(131072, 128) == 1
    assert all(4 * 3 * heads * tokens * chunk_for(tokens, heads) <= SCORES for heads in (2, 16) for tokens in (2048, 131072))


def test_engines_keep_parity_past_the_original_context(moetrt, long):
    result = moetrt("compare", long / "ort", long / "model", "--lengths", "30,300,1k", "--json")
    report = json.loads(result.out)
    assert (result.code, report["verdict"]) == (0, "same")
    assert [(one["tokens"], one["beyond_original"], len(one["depths"])) for one in report["lengths"]] == [(30, 0, 10), (300, 268, 10), (1024, 992, 10)]
    assert sum(depth["tokens"] for depth in report["lengths"][2]["depths"]) == 1024
    assert max(depth["relative_l2"] for one in report["lengths"] for depth in one["depths"]) < 1e-5


def test_a_rotation_that_is_wrong_far_out_is_seen_at_its_depth(moetrt, long, tmp_path):
    """A table that ends where YaRN begins to matter: positions beyond repeat the last."""
    import numpy as np
    from faults import copy_engines, edit_weight

    def clamp(table):
        table[600:] = table[600]
        return table

    folder = copy_engines(long / "ort", tmp_path / "ort")
    for rank in (0, 1):
        for name in ("cos", "sin"):
            edit_weight(folder, rank, f"rope.{name}", clamp)
    report = json.loads(moetrt("compare", folder, long / "model", "--lengths", "1000", "--json").out)
    depths = np.array([depth["relative_l2"] for depth in report["lengths"][0]["depths"]])
    assert report["verdict"] == "differ"
    assert (depths[:6] < 1e-5).all()
    assert (depths[7:] > 1e-3).all()
    assert report["first_divergent"]["token"] >= 600


def test_the_table_fits_a_terminal(moetrt, long):
    lines = moetrt("compare", long / "ort", long / "model", "--lengths", "100,200").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "same"


def test_the_page_of_long_contexts_stands_alone(moetrt, long, tmp_path):
    result = moetrt("compare", long / "ort", long / "model", "--lengths", "100,200", "--report", tmp_path / "page.html")
    assert result.code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<path class=\"c") >= 20
    assert "http" not in page
    assert json.loads((tmp_path / "page.json").read_text())["mode"] == "lengths"
