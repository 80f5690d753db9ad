"""Engines of TensorRT as a side of a comparison: end to end, and what cannot be seen of them is said."""

import json
import pickle

import pytest


@pytest.fixture
def plans(stand_in, engines, tmp_path):
    return stand_in.build(engines("v3", 1).parent / "graphs", tmp_path / "plans")


def test_onnx_runtimes_engines_and_tensorrts_are_the_same(tensorrt, engines, prompts, tmp_path, moetrt) -> None:
    plans = tensorrt.build(engines("v3", 1).parent / "graphs", tmp_path / "plans")
    outcome = moetrt("compare", engines("v3", 1), plans, "--prompts", prompts, "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, told["verdict"], told["segments"], told["notes"]) == (0, "same", [], [])
    assert {one["name"] for one in told["outputs"]} == {"logits", "decode"}


def test_engines_of_another_checkpoint_differ_and_why_no_segment_is_named_is_said(stand_in, engines, prompts, tmp_path, moetrt) -> None:
    import tiny

    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    other = tiny.write_checkpoint(tmp_path / "other", tiny.tiny_config("v3"), seed=1)
    export_model(ExportRequest(other, tmp_path / "graphs", Plan()))
    outcome = moetrt("compare", engines("v3", 1), stand_in.build(tmp_path / "graphs", tmp_path / "plans"), "--prompts", prompts, "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, told["verdict"], told["first_divergent"]["tensor"]) == (3, "differ", "end to end")
    assert any("each rank as one plan" in note and "--build-only" in note for note in told["notes"])


@pytest.mark.parametrize("mode", ["segments", "drift"])
@pytest.mark.parametrize("left", [True, False])
def test_what_walks_segment_by_segment_is_refused_with_what_would_work(plans, engines, prompts, moetrt, mode: str, left: bool) -> None:
    pair = (plans, engines("v3", 1))
    outcome = moetrt("compare", *(pair if left else reversed(pair)), "--prompts", prompts, "--mode", mode)
    assert outcome.code == 1
    assert f"--mode {mode} walks segment by segment; {plans} has each rank as one plan" in outcome.err.replace("\n", " ")
    assert "--segments" in outcome.err


def test_a_report_draws_the_logits_alone(plans, engines, prompts, tmp_path, moetrt) -> None:
    outcome = moetrt("compare", engines("v3", 1), plans, "--prompts", prompts, "--report", tmp_path / "report.html")
    assert outcome.code == 0, outcome.err
    assert "each rank as one plan" in (tmp_path / "report.html").read_text()


def test_long_contexts_are_compared(plans, engines, moetrt) -> None:
    outcome = moetrt("compare", engines("v3", 1), plans, "--lengths", "32,64", "--json")
    assert (outcome.code, json.loads(outcome.out)["verdict"]) == (0, "same"), outcome.err


@pytest.mark.parametrize("mode", ["segments", "drift"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_plans_of_segments_are_walked(tensorrt, engines, prompts, tmp_path, moetrt, tensor: int, mode: str) -> None:
    plans = tensorrt.build(engines("v3", tensor).parent / "graphs", tmp_path / "plans", segments=True)
    outcome = moetrt("compare", engines("v3", tensor), plans, "--prompts", prompts, "--mode", mode, "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, told["verdict"]) == (0, "same"), told["first_divergent"]
    assert {"embed", "layers.1.attention", "layers.1.moe_ffn", "head"} <= {one["segment"] for one in told["segments"]}


def test_the_plan_that_is_apart_is_named(stand_in, engines, prompts, tmp_path, moetrt) -> None:
    plans = stand_in.build(engines("v3", 2).parent / "graphs", tmp_path / "plans", segments=True)
    spoil(plans / "rank-01/layers.1.moe_ffn.engine")
    outcome = moetrt("compare", engines("v3", 2), plans, "--prompts", prompts, "--replay", tmp_path / "replay", "--json")
    told = json.loads(outcome.out)["first_divergent"]
    assert (outcome.code, told["segment"], told["rank"]) == (3, "layers.1.moe_ffn", 1)
    assert "nobody sees into a plan" in told["inside"][0]
    assert (tmp_path / "replay/left.onnx").is_file()
    assert not (tmp_path / "replay/right.onnx").exists()


def spoil(path) -> None:
    """Another weight in a stand-in's plan, which keeps its size."""
    import onnx

    plan = pickle.loads(path.read_bytes())
    model = onnx.load_from_string(plan.model)
    weight = max((tensor for tensor in model.graph.initializer if len(tensor.dims) == 3), key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[: len(weight.raw_data) // 2] * 2
    plan.model = model.SerializeToString()
    path.write_bytes(pickle.dumps(plan))
