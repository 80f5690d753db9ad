"""`calibrate` and `quantize` as users meet them: results on stdout, dry runs, refusals with a cure and nothing left behind."""

import json
import shutil

import numpy as np
import pytest

from calibration import weights
from exporter.checkpoint.reader import stored_array

ROWS = [np.random.default_rng(seed).integers(2, 128, 30).tolist() for seed in range(16)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(engines, tmp_path_factory):
    """Float graphs of two ranks, prompts, held-out prompts and a table."""
    from calibration.calibrate import CalibrationRequest, calibrate

    folder = tmp_path_factory.mktemp("calibrated")
    graphs = engines("v3", 2).parent / "graphs"
    prompts, held_out = write_rows(folder / "prompts.jsonl", ROWS[:12]), write_rows(folder / "held.jsonl", ROWS[12:])
    calibrate(CalibrationRequest(graphs, prompts, folder / "table.json", min_tokens_per_expert=1))
    return {"graphs": graphs, "prompts": prompts, "held": held_out, "table": folder / "table.json"}


def test_the_road_from_graphs_to_int8_tokens(moetrt, made, checkpoint, tmp_path):
    table, graphs = tmp_path / "table.json", tmp_path / "graphs-int8"
    told = json.loads(moetrt("calibrate", made["graphs"], "--prompts", made["prompts"], "--output", table, "--min-tokens-per-expert", 1, "--json").out)
    assert set(told) == {"output", "kept", "ranges", "fallbacks", "method", "samples", "topped_up", "tokens"}
    assert (told["samples"], told["tokens"], told["fallbacks"], told["kept"]) == (12, 360, {}, False)
    result = moetrt("quantize", made["graphs"], "--table", table, "--output", graphs, "--held-out", made["held"], "--json")
    told = json.loads(result.out)
    assert result.code == 0
    assert set(told) == {"output", "scheme", "float_segments", "quality", "made", "kept", "float_bytes", "quantized_bytes"}
    assert told["quality"]["tokens"] == 120
    assert told["quantized_bytes"] < 0.75 * told["float_bytes"], "tiny matrices, padded to pages"
    assert {path.name for path in graphs.iterdir()} == {"manifest.json", "report.html", "report.json", "rank-00", "rank-01"}
    assert moetrt("build", graphs, "--output", tmp_path / "ort").code == 0
    assert len(json.loads(moetrt("run", tmp_path / "ort", "--token-ids", "5,9,2", "--max-tokens", 4, "--ignore-eos", "--json").out)["tokens"]) == 4
    for folder in (graphs, tmp_path / "ort"):
        shown = moetrt("inspect", folder, "--verify").out
        assert "int8: 34 with static inputs" in shown
    assert moetrt("compare", tmp_path / "ort", graphs, "--prompts", made["held"]).code == 0
    assert moetrt("compare", tmp_path / "ort", checkpoint("v3"), "--prompts", made["held"], "--json").code in (0, 3), "known, if far for a random model"


def test_done_work_is_not_done_again(moetrt, made, tmp_path):
    arguments = ["quantize", made["graphs"], "--table", made["table"], "--output", tmp_path / "int8", "--json"]
    assert json.loads(moetrt(*arguments).out)["made"] == [0, 1]
    assert json.loads(moetrt(*arguments).out)["kept"] == [0, 1]
    assert json.loads(moetrt(*arguments, "--scheme", "int8-dynamic").out)["made"] == [0, 1]


def test_ranks_may_be_quantised_one_by_one(moetrt, made, tmp_path):
    for rank in (0, 1):
        assert moetrt("quantize", made["graphs"], "--table", made["table"], "--output", tmp_path / "int8", "--rank", rank).code == 0
    assert moetrt("inspect", tmp_path / "int8", "--verify").code == 0
    report = json.loads((tmp_path / "int8/report.json").read_text())
    assert {one["name"] for one in report["weights"]} >= {"layers.0.attention.q_a", "layers.3.moe_ffn.experts.down"}


def test_a_rank_needs_no_other_rank_at_hand(moetrt, made, tmp_path):
    alone = shutil.copytree(made["graphs"], tmp_path / "alone")
    shutil.rmtree(alone / "rank-00")
    arguments = ["quantize", alone, "--table", made["table"], "--output", tmp_path / "int8", "--rank", 1]
    assert moetrt(*arguments).code == 0
    assert [path.name for path in sorted(tmp_path.glob("int8/rank-*"))] == ["rank-01"]
    assert "rank-00 is missing" in moetrt(*arguments, "--smooth", 0.5).err, "smoothing looks at all ranks' weights"


def test_a_narrower_plan_leaves_no_rank_of_the_wider_one(moetrt, made, engines, tmp_path):
    assert moetrt("quantize", made["graphs"], "--scheme", "int8-weights", "--output", tmp_path / "out").code == 0
    assert moetrt("quantize", engines("v3").parent / "graphs", "--scheme", "int8-weights", "--output", tmp_path / "out").code == 0
    assert [path.name for path in sorted(tmp_path.glob("out/rank-*"))] == ["rank-00"]
    assert moetrt("inspect", tmp_path / "out").code == 0


def test_dry_runs_say_what_they_would_do_and_do_not(moetrt, made, tmp_path):
    result = moetrt("calibrate", made["graphs"], "--prompts", made["prompts"], "--output", tmp_path / "table.json", "--samples", 4, "--dry-run")
    assert "would see 120 tokens of 4 prompts, 8 more where experts lack tokens" in result.out
    result = moetrt("quantize", made["graphs"], "--table", made["table"], "--output", tmp_path / "int8", "--dry-run")
    assert "would quantise rank(s) [0, 1] as int8" in result.out
    result = moetrt("calibrate", made["graphs"], "--prompts", made["prompts"], "--output", tmp_path / "table.json", "--samples", 4, "--dry-run", "--json")
    assert json.loads(result.out) == {"output": str(tmp_path / "table.json"), "kept": False, "prompts": 4, "tokens": 120, "prompts_in_reserve": 8}
    report = json.loads(moetrt("quantize", made["graphs"], "--table", made["table"], "--output", tmp_path / "int8", "--dry-run", "--json").out)
    assert (report["ranks"], report["kept"], report["scheme"]) == ([0, 1], [], "int8")
    assert not list(tmp_path.iterdir())


def test_one_rank_of_another_scheme_is_refused_beside_those_that_are_there(moetrt, made, tmp_path):
    assert moetrt("quantize", made["graphs"], "--scheme", "int8-weights", "--output", tmp_path / "out").code == 0
    refused = moetrt("quantize", made["graphs"], "--scheme", "int4-weights", "--output", tmp_path / "out", "--rank", 0)
    assert refused.code == 1 and "rank-01 is of another quantisation" in refused.err
    assert moetrt("inspect", tmp_path / "out").code == 0


def test_a_table_is_not_written_over_another_file(moetrt, made, tmp_path):
    for text in ("notes", "[1]", "{}"):
        (tmp_path / "table.json").write_text(text)
        refused = moetrt("calibrate", made["graphs"], "--prompts", made["prompts"], "--output", tmp_path / "table.json")
        assert (refused.code, (tmp_path / "table.json").read_text()) == (1, text)
        assert "is there and is no calibration table" in refused.err


def test_a_cut_run_leaves_no_half_rank_and_goes_on(moetrt, made, tmp_path, monkeypatch):
    original, done = weights.quantise, []

    def cut(*arguments):
        done.append(1)
        if len(done) == 45:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(weights, "quantise", cut)
    arguments = ["quantize", made["graphs"], "--table", made["table"], "--output", tmp_path / "int8"]
    assert moetrt(*arguments).code == 130
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["rank-00"]
    assert json.loads(moetrt(*arguments, "--json").out)["kept"] == [0]


REFUSED = {
    "calibrate: no prompt": (["calibrate", "{graphs}", "--prompts", "{tmp}/empty.txt", "--output", "{tmp}/t.json"], 2, "holds no prompt"),
    "calibrate: another ending": (["calibrate", "{graphs}", "--prompts", "{tmp}/rows.csv", "--output", "{tmp}/t.json"], 2, "is no prompt file"),
    "calibrate: beyond the vocabulary": (["calibrate", "{graphs}", "--prompts", "{tmp}/wide.jsonl", "--output", "{tmp}/t.json"], 1, "prompt 1 of {tmp}/wide.jsonl, counted from 0, has the token 128"),
    "calibrate: text without a tokenizer": (["calibrate", "{graphs}", "--prompts", "{tmp}/text.txt", "--output", "{tmp}/t.json"], 1, "no tokenizer.json"),
    "calibrate: strict": (["calibrate", "{graphs}", "--prompts", "{tmp}/one.jsonl", "--output", "{tmp}/t.json", "--strict"], 1, "experts lack tokens"),
    "calibrate: engines": (["calibrate", "{engines}", "--prompts", "{tmp}/one.jsonl", "--output", "{tmp}/t.json"], 1, "holds engines"),
    "calibrate: not finite": (["calibrate", "{nan}", "--prompts", "{tmp}/one.jsonl", "--output", "{tmp}/t.json"], 1, "values that are not finite"),
    "calibrate: an unknown method": (["calibrate", "{graphs}", "--prompts", "{tmp}/one.jsonl", "--output", "{tmp}/t.json", "--method", "median"], 2, "'median' is not one of"),
    "quantize: no table": (["quantize", "{graphs}", "--output", "{tmp}/out"], 2, "the scheme int8 needs --table"),
    "quantize: no table to smooth by": (["quantize", "{graphs}", "--output", "{tmp}/out", "--scheme", "int8-weights", "--smooth", "0.5"], 2, "needs --table"),
    "quantize: a file that is no table": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{tmp}/one.jsonl"], 1, "one.jsonl"),
    "quantize: another checkpoint's table": (["quantize", "{other}", "--output", "{tmp}/out", "--table", "{table}"], 1, "was calibrated on"),
    "quantize: a budget without prompts": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--max-kl", "0.1"], 2, "--max-kl needs --held-out"),
    "quantize: held-out prompts of one rank": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--rank", "0", "--held-out", "{held}"], 2, "--held-out runs all ranks"),
    "quantize: held-out beyond the vocabulary": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--held-out", "{tmp}/wide.jsonl"], 1, "has the token 128"),
    "quantize: no held-out prompt": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--held-out", "{tmp}/empty.txt"], 2, "holds no prompt"),
    "quantize: a rank that is not there": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--rank", "5"], 1, "has no finished rank-05"),
    "quantize: a rank that is not there, smoothed": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--rank", "5", "--smooth", "0.5"], 1, "has no rank 5"),
    "quantize: onto itself": (["quantize", "{graphs}", "--output", "{graphs}", "--table", "{table}"], 1, "is the folder of the float graphs"),
    "quantize: over engines": (["quantize", "{graphs}", "--output", "{engines}", "--table", "{table}"], 1, "holds engines, not graphs"),
    "quantize: blocks too wide": (["quantize", "{graphs}", "--output", "{tmp}/out", "--scheme", "int4-weights-128"], 1, "do not divide"),
    "quantize: smoothing beyond 1": (["quantize", "{graphs}", "--output", "{tmp}/out", "--table", "{table}", "--smooth", "1.5"], 2, "--smooth"),
}


@pytest.fixture(scope="module")
def places(made, engines, tmp_path_factory):
    """What the refused command lines name."""
    spoiled = shutil.copytree(made["graphs"], tmp_path_factory.mktemp("nan") / "graphs")
    path = spoiled / "rank-00/weights.safetensors"
    place = stored_array(path, "layers.0.attention.norm")
    with open(path, "r+b") as file:
        file.seek(place.offset)
        file.write(np.full(place.shape, np.nan, place.dtype).tobytes())
    return made | {"engines": engines("v3", 2), "other": engines("v2").parent / "graphs", "nan": spoiled}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_where_which_and_a_clean_folder(moetrt, places, tmp_path, case):
    arguments, code, message = REFUSED[case]
    files = {"empty.txt": "\n", "rows.csv": "1,2\n", "wide.jsonl": '{"token_ids": [5]}\n{"token_ids": [5, 128]}\n', "one.jsonl": '{"token_ids": [5, 9]}\n', "text.txt": "hello\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    result = moetrt(*(argument.format(tmp=tmp_path, **places) for argument in arguments))
    assert message.format(tmp=tmp_path) in result.err
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    left = {path.name for path in tmp_path.iterdir()}
    assert left == set(files) | ({".t.json.partial"} if case == "calibrate: strict" else set())
