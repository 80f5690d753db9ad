"""Comparing: the metrics are what they say, sound pairs are the same, spoiled ones differ."""

import json
import shutil

import numpy as np
import pytest
import tiny

from engines.compare.metrics import Accumulator, divergence
from engines.compare.tolerances import tolerance


def test_metrics_of_known_logits():
    left = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    right = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32))
    sums = Accumulator("logits")
    sums.add(left[:1], right[:1])
    sums.add(left[1:], right[1:])
    found = sums.result()
    assert found.kl == pytest.approx(0.25 * np.log(2) / 2, rel=1e-6)
    assert found.max_abs == pytest.approx(np.log(2), rel=1e-6)
    assert found.top1_agreement == 0.5
    assert found.relative_l2 == pytest.approx(np.linalg.norm(left - right) / np.linalg.norm(left), rel=1e-6)
    assert found.cosine == pytest.approx((left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right), rel=1e-6)


def test_divergence_ignores_a_constant_added_to_the_logits():
    logits = np.random.default_rng(0).standard_normal((5, 40))
    np.testing.assert_allclose(divergence(logits, logits + 7), 0, atol=1e-12)


def test_the_looser_precision_decides():
    assert tolerance("fp32", "bf16") == tolerance("bf16", "fp16") == tolerance("bf16", "bf16")
    assert tolerance("fp32", "fp32").relative_l2 < tolerance("fp16", "fp32").relative_l2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_engines_and_their_checkpoint_are_the_same(moetrt, engines, checkpoint, prompts, family):
    result = moetrt("compare", engines(family, 2), checkpoint(family), "--prompts", prompts, "--json")
    report = json.loads(result.out)
    assert (result.code, report["verdict"], report["first_divergent"]) == (0, "same", None)
    assert set(report) >= {"verdict", "first_divergent", "outputs"}
    assert [one["name"] for one in report["outputs"]] == ["logits", "decode"]
    assert set(report["outputs"][0]) >= {"name", "max_abs", "cosine", "relative_l2", "kl", "top1_agreement"}
    assert report["outputs"][0]["top1_agreement"] == 1


def test_plans_forms_and_portable_graphs_are_the_same(moetrt, engines, prompts):
    for other in (engines("v3", 4, 2), engines("v3", 2, attention="naive"), engines("v3", 2).parent / "graphs"):
        assert moetrt("compare", engines("v3", 2), other, "--prompts", prompts).code == 0


def test_half_precision_is_held_to_its_own_tolerance(moetrt, engines, prompts):
    result = moetrt("compare", engines("v3", 2, precision="fp16"), engines("v3", 2), "--prompts", prompts, "--json")
    assert json.loads(result.out)["outputs"][0]["relative_l2"] > tolerance("fp32", "fp32").relative_l2
    assert result.code == 0


def test_one_changed_weight_is_noticed(moetrt, engines, prompts, tmp_path):
    """A norm of a layer doubled in one rank alone."""
    from safetensors import safe_open

    folder = shutil.copytree(engines("v3", 2), tmp_path / "engines")
    weights = folder / "rank-01/weights.safetensors"
    with safe_open(weights, "np") as file:
        norm = file.get_tensor("layers.2.attention.norm")
    data = weights.read_bytes()
    weights.unlink()
    assert data.count(norm.tobytes()) == 1
    weights.write_bytes(data.replace(norm.tobytes(), (norm * 2).tobytes()))
    result = moetrt("compare", folder, engines("v3", 2), "--prompts", prompts, "--json")
    report = json.loads(result.out)
    assert (result.code, report["verdict"]) == (3, "differ")
    assert report["first_divergent"]["metric"] == "relative_l2"
    assert report["first_divergent"]["value"] > report["first_divergent"]["tolerance"]


def test_folders_of_different_checkpoints_are_compared_with_a_note(moetrt, engines, prompts, tmp_path):
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    other = tiny.write_checkpoint(tmp_path / "other", tiny.tiny_config("v3"), seed=1)
    export_model(ExportRequest(other, tmp_path / "graphs", Plan(1)))
    build_engines(EngineRequest(tmp_path / "graphs", "ort", tmp_path / "ort"))
    result = moetrt("compare", engines("v3"), tmp_path / "ort", "--prompts", prompts)
    assert result.code == 3
    assert "different checkpoints" in result.err


def test_a_tolerance_of_ones_own(moetrt, engines, prompts):
    pair = (engines("v3", 2, precision="fp16"), engines("v3", 2), "--prompts", prompts)
    assert moetrt("compare", *pair, "--tolerance", "1e-9").code == 3
    assert moetrt("compare", *pair, "--tolerance", "0.5").code == 0
