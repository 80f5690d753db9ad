"""Comparing: the metrics are what they say, sound pairs are the same, spoiled ones differ."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from engines.compare.metrics import Accumulator, divergence
from engines.compare.tolerances import SAME_NUMBERS, TOLERANCES, tolerance


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


def test_a_checkpoint_of_another_type_name_is_run_as_the_family_that_it_is(moetrt, engines, checkpoint, prompts, tmp_path):
    """As Kimi-K2 is, whose code transformers would have to download."""
    folder = Path(shutil.copytree(checkpoint("v3"), tmp_path / "kimi"))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "kimi_k2", "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert moetrt("compare", engines("v3", 2), folder, "--prompts", prompts).code == 0


@pytest.mark.parametrize("mode", ["segments", "drift"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sound_engines_are_the_same_segment_by_segment(moetrt, engines, checkpoint, prompts, family, mode):
    """Cut out of one graph for one rank, as they lie in the folder for two."""
    for tensor in (1, 2):
        result = moetrt("compare", engines(family, tensor), checkpoint(family), "--prompts", prompts, "--mode", mode, "--json")
        report = json.loads(result.out)
        assert (result.code, report["first_divergent"]) == (0, None)
        assert {(one["segment"], one["tensor"]) for one in report["segments"]} >= {("layers.2.attention", "latents"), ("layers.2.moe_ffn", "update"), ("head", "logits")}
        assert {one["experts_changed"] for one in report["segments"] if one["segment"] == "layers.2.moe_ffn" and one["tensor"] == "update"} == {0}


@pytest.mark.parametrize("mode", ["logits", "segments", "drift"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_int8_engines_are_their_own_graphs_in_stock_onnxruntime(moetrt, int8, prompts, tensor, mode):
    """Held to rounding of the same numbers, far below what INT8 costs."""
    result = moetrt("compare", int8("v3", tensor), int8("v3", tensor).parent / "graphs-int8", "--prompts", prompts, "--mode", mode, "--json")
    report = json.loads(result.out)
    assert (result.code, report["first_divergent"]) == (0, None)
    assert report["tolerance"]["relative_l2"] < TOLERANCES["int8"].relative_l2


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weights"])
def test_scales_by_channel_are_of_what_a_rank_holds_so_that_other_splits_are_other_numbers(moetrt, int8, prompts, scheme):
    result = moetrt("compare", int8("v3", 1, scheme), int8("v3", 2, scheme), "--prompts", prompts, "--mode", "segments", "--json")
    report = json.loads(result.out)
    assert (result.code, report["first_divergent"]) == (0, None)
    assert report["tolerance"]["segment"] == TOLERANCES[scheme].segment
    assert max(one["relative_l2"] or 0 for one in report["segments"]) > SAME_NUMBERS[scheme].segment, "they are apart by more than rounding"


@pytest.mark.parametrize("scheme", ["int8-weights-32", "int4-weights"])
def test_blocks_are_the_same_in_every_split_and_held_to_rounding(moetrt, int8, prompts, scheme):
    result = moetrt("compare", int8("v3", 1, scheme), int8("v3", 2, scheme), "--prompts", prompts, "--mode", "segments", "--json")
    report = json.loads(result.out)
    assert (result.code, report["first_divergent"]) == (0, None)
    assert report["tolerance"]["segment"] == SAME_NUMBERS[scheme].segment


def test_pipeline_stages_are_walked_as_one_model(moetrt, engines, prompts):
    result = moetrt("compare", engines("v3", 1, 2), engines("v3", 2, 2), "--prompts", prompts, "--mode", "segments", "--json")
    assert result.code == 0
    assert len({one["segment"] for one in json.loads(result.out)["segments"]}) == 2 + 2 * 4


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
    assert "different checkpoints" in result.out


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: next(folder.glob("*00002-of*")).write_bytes(b""), "truncated or no safetensors file"),
        (lambda folder: next(folder.glob("*00002-of*")).unlink(), "lacks model-00002-of-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}'), "has no weight_map"),
        (lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text().replace('"n_routed_experts": 16', '"n_routed_experts": 32')), "mlp.experts.16"),
    ],
)
def test_a_checkpoint_is_proven_whole_before_transformers_reads_it(moetrt, engines, checkpoint, prompts, tmp_path, spoil, told):
    folder = Path(shutil.copytree(checkpoint("v3"), tmp_path / "model"))
    spoil(folder)
    refused = moetrt("compare", engines("v3"), folder, "--prompts", prompts)
    assert refused.code == 1
    assert told in refused.err


def test_a_checkpoint_that_is_not_the_engines_own_is_noted(moetrt, engines, prompts, tmp_path):
    other = tiny.write_checkpoint(tmp_path / "other", tiny.tiny_config("v3"), seed=5)
    report = json.loads(moetrt("compare", engines("v3"), other, "--prompts", prompts, "--json").out)
    assert report["verdict"] == "differ"
    assert any("different checkpoints" in note for note in report["notes"])


def test_a_tolerance_of_ones_own(moetrt, engines, prompts):
    pair = (engines("v3", 2, precision="fp16"), engines("v3", 2), "--prompts", prompts)
    assert moetrt("compare", *pair, "--tolerance", "1e-9").code == 3
    assert moetrt("compare", *pair, "--tolerance", "0.5").code == 0


@pytest.fixture
def limits(tmp_path):
    """``limits(text)``: a file of limits."""

    def write(text):
        (tmp_path / "limits.json").write_text(text)
        return tmp_path / "limits.json"

    return write


def test_a_file_of_limits_overrides_the_table_and_single_segments(moetrt, engines, prompts, limits):
    pair = (engines("v3", 2, precision="fp16"), engines("v3", 2), "--prompts", prompts, "--json", "--mode", "segments", "--tolerance-file")
    assert moetrt("compare", *pair, limits('{"segment": 0.5}')).code == 0
    strict = moetrt("compare", *pair, limits('{"segments": {"layers.*.moe_ffn": {"segment": 0}, "layers.1.*": {"segment": 1}}}'))
    assert strict.code == 3
    assert json.loads(strict.out)["first_divergent"]["segment"] == "layers.2.moe_ffn"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"kll": 1}', "'kll', which is no limit"),
        ('{"kl": -1}', "sets kl to -1"),
        ('{"kl": "much"}', "sets kl to 'much'"),
        ('{"segments": {"head": {"kl": 1}}}', "segments: head sets 'kl'"),
        ('{"segments": []}', "no object of patterns"),
        ("[]", "is no object"),
        ("{", "limits.json"),
    ],
)
def test_a_broken_file_of_limits_is_refused_by_name(moetrt, engines, prompts, limits, text, told):
    result = moetrt("compare", engines("v3"), engines("v3"), "--prompts", prompts, "--tolerance-file", limits(text))
    assert result.code == 2
    assert told in result.err


def test_what_cannot_be_compared_is_refused(moetrt, engines, checkpoint, prompts, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"token_ids": [3] * 200}))
    strange = tmp_path / "strange.jsonl"
    strange.write_text(json.dumps({"token_ids": [3, 999]}))
    pair = ("compare", engines("v3"), checkpoint("v3"))
    for arguments, told in (
        (["--prompts", long], "beyond the context of 128"),
        (["--prompts", strange], "the token 999"),
        ([], "--prompts"),
        (["--prompts", prompts, "--build-only"], "no use for --prompts"),
        (["--lengths", "2k", "--mode", "drift"], "no use for --mode"),
        (["--lengths", "2k"], "beyond the context of 128"),
        (["--lengths", "many"], "'many', which is no number"),
        (["--prompts", prompts, "--tolerance", "1", "--tolerance-file", strange], "both given"),
    ):
        result = moetrt(*pair, *arguments)
        assert result.code in (1, 2), arguments
        assert told in result.err, arguments


def test_a_prompt_of_one_token_can_be_compared(moetrt, engines, checkpoint, tmp_path):
    one = tmp_path / "one.jsonl"
    one.write_text('{"token_ids": [5]}\n{"token_ids": [5, 6]}\n')
    for mode in ("logits", "segments", "drift"):
        assert moetrt("compare", engines("v3", 2), checkpoint("v3"), "--prompts", one, "--mode", mode).code == 0


def test_long_prompts_go_in_chunks(moetrt, engines, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("engines.runtime.generate.PREFILL", 8)
    prompt = tmp_path / "prompt.jsonl"
    prompt.write_text(json.dumps({"token_ids": list(range(2, 40))}))
    for mode in ("logits", "segments", "drift"):
        assert moetrt("compare", engines("v3", 2), checkpoint("v3"), "--prompts", prompt, "--mode", mode).code == 0


def test_a_flip_counts_only_where_the_reference_was_sure():
    left = np.array([[2.0, 1.9, 0.0], [2.0, 0.0, 0.0]])
    sums = Accumulator("logits", margin=0.5)
    sums.add(left, left[:, [1, 0, 2]])
    found = sums.result()
    assert (found.top1_agreement, found.top1_flips) == (0, 0.5)


def test_outliers_are_set_aside_up_to_their_share():
    left = np.random.default_rng(0).standard_normal((100, 20))
    right = left.copy()
    right[7] += 5
    sums = Accumulator("logits")
    sums.add(left, right)
    assert sums.judged(0.0)["relative_l2"] == pytest.approx(sums.result().relative_l2)
    assert sums.judged(0.01) == {"relative_l2": 0, "kl": 0}


def test_what_is_no_number_is_a_fault_and_never_a_crash(moetrt, engines, prompts, tmp_path):
    from faults import copy_engines, edit_weight

    folder = copy_engines(engines("v3", 2), tmp_path / "ort")
    edit_weight(folder, 0, "layers.1.attention.o", lambda weight: weight * np.nan)
    for mode in ("logits", "segments", "drift"):
        result = moetrt("compare", engines("v3", 2), folder, "--prompts", prompts, "--mode", mode, "--json")
        assert result.code == 3
        report = json.loads(result.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert report["first_divergent"]["segment"] == "layers.1.attention"


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(moetrt, engines, prompts, tmp_path):
    words = ["compare", engines("v3"), engines("v3", 2), "--prompts", prompts, "--report", tmp_path / "report.html", "--replay", tmp_path / "replay", "--dry-run"]
    told = moetrt(*words)
    assert told.code == 0
    assert f"would write {tmp_path / 'report.html'}, {tmp_path / 'compare.json'}, {tmp_path / 'replay'}" in told.out
    assert len(json.loads(moetrt(*words, "--json").out)["writes"]) == 3
    assert not list(tmp_path.iterdir())
