"""Twelve planted faults: comparing names the right segment in each, and the rank where it is one rank's."""

import json
import shutil

import pytest
import tiny
from faults import FAULTS, copy_engines, edit_graph, edit_weight

from engines.build import EngineRequest, build_engines
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Engines of the same model with other weights."""
    folder = tmp_path_factory.mktemp("another")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config("v3"), seed=5)
    export_model(ExportRequest(folder / "model", folder / "graphs", Plan(2)))
    build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort"))
    return folder / "ort"


@pytest.fixture(scope="module")
def faulty(engines, int8, another, tmp_path_factory):
    """``faulty(name)``: a copy of sound engines with a fault planted, made on first asking."""
    made = {}

    def make(name):
        if name not in made:
            fault = FAULTS[name]
            sound = int8() if fault.scheme else engines("v3", 2)
            made[name] = copy_engines(sound, tmp_path_factory.mktemp("faulty") / "ort")
            if fault.plant:
                fault.plant(made[name])
            else:
                weights = made[name] / "rank-01/weights.safetensors"
                weights.unlink()
                shutil.copyfile(another / "rank-01/weights.safetensors", weights)
        return made[name]

    return make


@pytest.fixture
def found(moetrt, faulty, prompts):
    """``found(name, reference, mode)``: exit code and the report."""

    def run(name, left, mode):
        result = moetrt("compare", left, faulty(name), "--prompts", prompts, "--mode", mode, "--json")
        assert result.code == 3, result.err
        return json.loads(result.out)

    return run


@pytest.fixture
def reference(engines, int8, checkpoint):
    """What a fault is held against: transformers, or for INT8 the quantised graphs in stock ONNX Runtime."""
    return lambda name: int8().parent / "graphs-int8" if FAULTS[name].scheme else checkpoint("v3")


@pytest.mark.parametrize("name", FAULTS)
def test_the_segment_of_a_fault_is_named(found, reference, name):
    report = found(name, reference(name), "segments")
    assert report["verdict"] == "differ"
    assert report["first_divergent"]["segment"] == FAULTS[name].segment
    assert FAULTS[name].note in report["first_divergent"]["note"]
    assert report["first_divergent"]["value"] > report["first_divergent"]["tolerance"]


@pytest.mark.parametrize("name", FAULTS)
def test_logits_alone_lead_to_the_segment_the_rank_and_the_cause(found, engines, int8, name):
    """With sound engines of the same plan, what differs inside is told by name."""
    sound = int8() if FAULTS[name].scheme else engines("v3", 2)
    first = found(name, sound, "logits")["first_divergent"]
    assert (first["segment"], first["rank"]) == (FAULTS[name].segment, FAULTS[name].rank)
    assert FAULTS[name].inside in "\n".join(first["inside"])


@pytest.mark.parametrize("name", FAULTS)
def test_drift_begins_at_the_fault_or_behind_it(found, reference, name):
    report = found(name, reference(name), "drift")
    order = list(dict.fromkeys(one["segment"] for one in report["segments"]))
    assert order.index(report["first_divergent"]["segment"]) >= order.index(FAULTS[name].segment)


def test_the_faulty_side_may_be_the_left_one(moetrt, engines, faulty, prompts):
    for name, fault in FAULTS.items():
        if fault.scheme is None:
            result = moetrt("compare", faulty(name), engines("v3", 1), "--prompts", prompts, "--mode", "segments", "--json")
            assert json.loads(result.out)["first_divergent"]["segment"] == fault.segment, name


def test_a_fault_within_one_graph_of_a_whole_rank_is_found_by_cutting_it(moetrt, engines, checkpoint, prompts, tmp_path):
    """One tensor rank is one graph: the segment is cut out of it."""
    folder = copy_engines(engines("v3", 1), tmp_path / "ort")

    def halves(graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "interleaved" and node.name.startswith("/layers.2/"):
                    attribute.i = 0

    edit_graph(folder, 0, "rank", halves)
    for other in (checkpoint("v3"), engines("v3", 1).parent / "graphs"):
        result = moetrt("compare", folder, other, "--prompts", prompts, "--json")
        assert json.loads(result.out)["first_divergent"]["segment"] == "layers.2.attention"


def test_a_copy_that_one_rank_alone_holds_wrong_is_that_ranks(moetrt, engines, prompts, tmp_path):
    """A norm, of which every rank has a copy."""
    folder = copy_engines(engines("v3", 4), tmp_path / "ort")
    edit_weight(folder, 2, "layers.2.attention.kv_norm", lambda norm: norm * 1.5)
    result = moetrt("compare", engines("v3", 2), folder, "--prompts", prompts, "--mode", "segments", "--json")
    found = json.loads(result.out)["first_divergent"]
    assert (found["segment"], found["tensor"], found["rank"]) == ("layers.2.attention", "latents", 2)
