"""`moetrt calibrate`: the same table under every plan, the coverage gate, refusals, going on after a cut."""

import json
import shutil

import numpy as np
import onnx
import pytest

from calibration import collect
from calibration.calibrate import CalibrationRequest, calibrate
from calibration.table import read_table
from calibration.walk import batches, parts, walk_part
from exporter.checkpoint.reader import stored_array
from exporter.errors import LoadError, RunError, UsageError
from exporter.plan import files
from exporter.plan.manifest import GraphsRank, read_ranks

A_BIN = 2e-3
"""Of a range: one bin of the histogram that it is chosen from, into which a value may fall by another rounding."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """24 prompts of random token ids, of unequal length."""
    draw, path = np.random.default_rng(3), tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [draw.integers(2, 128, draw.integers(3, 40)).tolist() for _ in range(24)]
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def float_graphs(engines):
    """``float_graphs(family, tensor, pipeline)``: portable float graphs with weights."""
    return lambda *arguments, **options: engines(*arguments, **options).parent / "graphs"


def table(graphs, prompts, output, **options):
    return calibrate(CalibrationRequest(graphs, prompts, output, **{"samples": 24, "min_tokens_per_expert": 1} | options)).table


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("family", ["v3", "v2-lite"])
def test_the_table_knows_no_ranks(float_graphs, prompts, tmp_path, family, tensor, pipeline):
    one = table(float_graphs(family), prompts, tmp_path / "one.json")
    other = table(float_graphs(family, tensor, pipeline), prompts, tmp_path / "other.json")
    if tensor == 1:
        assert (one.linears, one.experts) == (other.linears, other.experts)
    assert list(one.linears) == list(other.linears)
    for name, seen in one.linears.items():
        assert other.linears[name].count == seen.count
        np.testing.assert_allclose(other.linears[name].amax, seen.amax, rtol=A_BIN)
    for name, seen in one.experts.items():
        moved = np.subtract(other.experts[name].tokens, seen.tokens)
        assert moved.sum() == 0
        assert np.abs(moved).sum() <= 4, "ranks sum in another order: a tie to rounding of two experts may fall the other way"
        np.testing.assert_allclose(*(np.array(table.experts[name].amax)[moved == 0] for table in (one, other)), rtol=A_BIN)


def test_batches_do_not_matter(float_graphs, prompts, tmp_path):
    tables = [table(float_graphs("v3"), prompts, tmp_path / f"{size}.json", batch=size, method="max") for size in (1, 24)]
    for name, seen in tables[0].linears.items():
        assert tables[1].linears[name].count == seen.count, "padding must not be counted"
        np.testing.assert_allclose(tables[1].linears[name].maximum, seen.maximum, rtol=1e-5)


def test_every_routed_token_is_counted_once_for_each_of_its_experts(float_graphs, prompts, tmp_path):
    made = table(float_graphs("v3", 2), prompts, tmp_path / "table.json")
    assert {sum(one.tokens) for one in made.experts.values()} == {made.tokens * 4}


def test_inputs_of_experts_are_those_of_transformers(checkpoint, float_graphs, prompts, tmp_path):
    """The maxima of each expert's product, against hooks in the reference model."""
    import tiny
    import torch

    made = table(float_graphs("v3"), prompts, tmp_path / "table.json", method="max", batch=1)
    model = tiny.reference_model(checkpoint("v3"))
    seen = {}
    for layer in (1, 2, 3):
        mlp = model.model.layers[layer].mlp
        mlp.shared_experts.down_proj.register_forward_hook(lambda _, given, out, layer=layer: seen.__setitem__(layer, max(seen.get(layer, 0), float(given[0].abs().max()))))
    with torch.no_grad():
        for line in prompts.read_text().splitlines():
            model(torch.tensor([json.loads(line)["token_ids"]]))
    for layer, most in seen.items():
        np.testing.assert_allclose(made.linears[f"layers.{layer}.moe_ffn.shared.down"].maximum, most, rtol=1e-4)


def test_ranges_and_counts_are_numpys_on_the_tapped_values(float_graphs, prompts, tmp_path):
    """Bit for bit: what flows into each linear of two segments, gathered whole, against what the table kept of it."""
    graphs = float_graphs("v3")
    made = table(graphs, prompts, tmp_path / "table.json", method="max", batch=4)
    ranks = read_ranks(GraphsRank, graphs)
    given = batches([json.loads(line)["token_ids"] for line in prompts.read_text().splitlines()], 4)
    for part in parts(ranks)[:5]:
        graph = onnx.load(graphs / "rank-00" / f"{part.name}.onnx", load_external_data=False).graph
        taps, seen = collect.find_taps(graph).linears, {}

        def gather(record, batch, values, counts, seen=seen):
            for name, value in values.items():
                seen.setdefault(name, []).append(np.abs(value[counts] if value.ndim == 3 else value.reshape(*counts.shape, -1)[counts]).ravel())

        for _ in walk_part(part, given, graphs, list(dict.fromkeys(taps.values())), gather):
            pass
        for weight, value in taps.items():
            x, kept = np.concatenate(seen[value]), made.linears[weight]
            assert (kept.count, kept.maximum, kept.amax) == (x.size, x.max(), x.max())
            assert kept.histogram == tuple(np.histogram(x, 64, (0, kept.top))[0])


def test_an_expert_without_tokens_gets_the_pooled_range_and_a_reason(float_graphs, tmp_path):
    prompt = tmp_path / "one.jsonl"
    prompt.write_text('{"token_ids": [5, 9]}\n')
    made = table(float_graphs("v3"), prompt, tmp_path / "table.json")
    one = made.experts["layers.1.moe_ffn.experts.down"]
    assert one.fallbacks
    for expert, why in one.fallbacks.items():
        assert one.tokens[int(expert)] == 0
        assert "no token" in why
        assert one.amax[int(expert)] == one.pooled > 0


def test_experts_that_lack_tokens_are_topped_up_from_the_remaining_prompts(float_graphs, prompts, tmp_path):
    made = table(float_graphs("v3"), prompts, tmp_path / "table.json", samples=2, min_tokens_per_expert=20)
    assert made.samples > 2
    assert made.topped_up == made.samples - 2


def test_a_topped_up_table_is_that_of_all_its_prompts_at_once(float_graphs, prompts, tmp_path):
    topped = table(float_graphs("v3"), prompts, tmp_path / "topped.json", samples=4, min_tokens_per_expert=10**6)
    whole = table(float_graphs("v3"), prompts, tmp_path / "whole.json", min_tokens_per_expert=10**6)
    assert topped.samples == whole.samples == 24
    assert {name: one.tokens for name, one in topped.experts.items()} == {name: one.tokens for name, one in whole.experts.items()}
    for name, seen in whole.linears.items():
        np.testing.assert_allclose(topped.linears[name].amax, seen.amax, rtol=1e-5)


def test_strict_refuses_and_names_the_expert(float_graphs, tmp_path):
    prompt = tmp_path / "one.jsonl"
    prompt.write_text('{"token_ids": [5, 9]}\n')
    with pytest.raises(RunError, match=r"experts.down\[\d+\]: no token"):
        table(float_graphs("v3"), prompt, tmp_path / "table.json", strict=True)
    assert not (tmp_path / "table.json").exists()


def test_what_strict_refused_is_used_without_it(float_graphs, tmp_path, monkeypatch):
    prompt = tmp_path / "one.jsonl"
    prompt.write_text('{"token_ids": [5, 9]}\n')
    with pytest.raises(RunError):
        table(float_graphs("v3"), prompt, tmp_path / "table.json", strict=True)
    monkeypatch.setattr(collect, "walk_part", None)
    assert table(float_graphs("v3"), prompt, tmp_path / "table.json").experts["layers.1.moe_ffn.experts.down"].fallbacks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "table.json"]


def test_a_cut_run_goes_on_after_the_last_finished_segment(float_graphs, prompts, tmp_path, monkeypatch):
    graphs, whole, done = float_graphs("v3", 2), tmp_path / "whole.json", []
    table(graphs, prompts, whole)
    original = collect.walk_part

    def cut(part, *arguments):
        done.append(part.name)
        if len(done) == 5:
            raise KeyboardInterrupt
        return original(part, *arguments)

    monkeypatch.setattr(collect, "walk_part", cut)
    with pytest.raises(KeyboardInterrupt):
        table(graphs, prompts, tmp_path / "cut.json")
    assert not (tmp_path / "cut.json").exists()
    table(graphs, prompts, tmp_path / "cut.json")
    assert done[5] == done[4], "the segment that was cut is the first to be run again"
    assert read_table(tmp_path / "cut.json") == read_table(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "whole.json"]


def test_an_equal_request_is_not_carried_out_twice(float_graphs, prompts, tmp_path, monkeypatch):
    request = CalibrationRequest(float_graphs("v3"), prompts, tmp_path / "table.json")
    calibrate(request)
    monkeypatch.setattr(collect, "walk_part", None)
    assert calibrate(request).kept


@pytest.mark.parametrize(
    ("line", "error", "what"),
    [
        ("", UsageError, "holds no prompt"),
        ('{"token_ids": [5, 128]}\n', RunError, "token 128, beyond the vocabulary of 128"),
        ('{"token_ids": []}\n', UsageError, "token_ids"),
        ("not json\n", UsageError, "not valid JSON"),
    ],
)
def test_bad_prompts_are_refused(float_graphs, tmp_path, line, error, what):
    prompt = tmp_path / "bad.jsonl"
    prompt.write_text(line)
    with pytest.raises(error, match=what):
        table(float_graphs("v3"), prompt, tmp_path / "table.json")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_activations_that_are_not_finite_are_refused_by_name(float_graphs, prompts, tmp_path):
    graphs = shutil.copytree(float_graphs("v3"), tmp_path / "graphs")
    weights = graphs / "rank-00/weights.safetensors"
    values = stored_array(weights, "layers.2.attention.norm")
    with open(weights, "r+b") as file:
        file.seek(values.offset)
        file.write(np.full(values.shape, np.nan, np.float32).tobytes())
    with pytest.raises(RunError, match=r"input of layers.2.attention.q_a has \d+ values that are not finite"):
        table(graphs, prompts, tmp_path / "table.json")


def test_engines_and_an_unknown_method_are_refused(engines, float_graphs, prompts, tmp_path):
    with pytest.raises(LoadError, match="holds engines"):
        table(engines("v3"), prompts, tmp_path / "table.json")
    with pytest.raises(UsageError, match="max, percentile, entropy, mse"):
        table(float_graphs("v3"), prompts, tmp_path / "table.json", method="median")


def test_a_table_of_another_version_is_written_over_and_another_file_is_not(float_graphs, prompts, tmp_path):
    (tmp_path / "old.json").write_text('{"kind": "calibration", "version": 0}')
    assert table(float_graphs("v3"), prompts, tmp_path / "old.json") == read_table(tmp_path / "old.json")
    (tmp_path / "notes.json").write_text('{"kind": "notes"}')
    with pytest.raises(LoadError, match="is no calibration table"):
        table(float_graphs("v3"), prompts, tmp_path / "notes.json")


def test_the_table_is_read_strictly(float_graphs, prompts, tmp_path):
    table(float_graphs("v3"), prompts, tmp_path / "table.json")
    data = files.read_json(tmp_path / "table.json") | {"extra": 1}
    (tmp_path / "table.json").write_text(json.dumps(data))
    with pytest.raises(LoadError, match="unknown field 'extra'"):
        read_table(tmp_path / "table.json")
