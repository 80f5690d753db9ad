"""`moetrt plan`: the published figures, the contract of its JSON, and what it says to bad input."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
KEYS = {"ranks", "total_weight_bytes", "disk_bytes", "fits", "suggestion", "legal", "problems"}
RANK_KEYS = {"rank", "stage", "layers", "heads", "experts", "vocab", "weight_bytes", "file_bytes", "kv_bytes_per_token"}


@pytest.fixture
def plan(moetrt):
    def run(name: str, *options: object) -> dict:
        return json.loads(moetrt("plan", DATA / name, "--json", *options).out)

    return run


def test_the_json_has_the_contracts_keys_and_no_other(plan):
    report = plan("deepseek-v3", "--tensor", 8, "--pipeline", 2)
    assert set(report) == KEYS
    assert all(set(rank) == RANK_KEYS for rank in report["ranks"])
    assert [(rank["rank"], rank["stage"]) for rank in report["ranks"]] == [(rank, rank // 8) for rank in range(16)]


def test_the_671b_model_on_sixteen_ranks(plan):
    report = plan("deepseek-v3", "--tensor", 16)
    assert report["total_weight_bytes"] == 673150611808
    assert {rank["weight_bytes"] for rank in report["ranks"]} == {43139382208}
    assert {rank["kv_bytes_per_token"] for rank in report["ranks"]} == {61 * 576 * 2}
    assert report["ranks"][15]["experts"] == [240, 256]
    assert report["disk_bytes"] == 2 * sum(rank["file_bytes"] for rank in report["ranks"])
    assert (report["fits"], report["suggestion"], report["legal"], report["problems"]) == (None, None, True, [])


@pytest.mark.parametrize(
    ("name", "precision", "memory", "ranks"),
    [("deepseek-v2-lite", "bf16", 24, 2), ("deepseek-v2", "bf16", 80, 8), ("deepseek-v3", "fp8", 80, 16), ("deepseek-v3", "int8", 80, 16)],
)
def test_the_articles_rank_counts_are_suggested(plan, name, precision, memory, ranks):
    report = plan(name, "--precision", precision, "--device-memory", memory)
    assert report["suggestion"] == ranks
    assert not report["fits"]
    assert plan(name, "--precision", precision, "--device-memory", memory, "--tensor", ranks)["fits"]


def test_a_suggestion_keeps_the_stages_that_were_asked_for(plan):
    assert plan("deepseek-v3", "--device-memory", 80, "--pipeline", 2)["suggestion"] == 16


def test_nothing_is_suggested_where_nothing_fits(plan, moetrt):
    assert plan("deepseek-v3", "--device-memory", 1)["suggestion"] is None
    assert "suggest  nothing" in moetrt("plan", DATA / "deepseek-v3", "--device-memory", 1).out


def test_more_context_may_ask_for_more_ranks(plan):
    assert plan("deepseek-v2-lite", "--device-memory", 24, "--context", 10**6)["suggestion"] is None
    assert plan("deepseek-v2-lite", "--device-memory", 24, "--context", 400_000)["suggestion"] == 4


def test_the_table_states_reserve_context_and_suggestion_within_80_columns(moetrt):
    outcome = moetrt("plan", DATA / "deepseek-v2-lite", "--tensor", 2, "--device-memory", 24)
    assert outcome.code == 0
    for part in ("a reserve of 10%", "32,768 tokens", "fits 21.60 GiB", "suggest  2 ranks", "each tensor once"):
        assert part in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 90


def test_an_illegal_plan_exits_1_with_its_json_still_printed(moetrt):
    outcome = moetrt("plan", DATA / "deepseek-v3", "--tensor", 32, "--json")
    report = json.loads(outcome.out)
    assert outcome.code == 1
    assert not report["legal"]
    assert len(report["problems"]) == 4
    assert "--tensor from 1, 2, 4, 8, 16." in report["problems"][0]
    assert len(report["ranks"]) == 32
    assert "Error: mlp.gate_proj and up_proj: 18432 rows" in outcome.err


def test_headers_beside_the_config_are_checked(moetrt, spoiled):
    folder = spoiled()
    assert moetrt("plan", folder).code == 0
    (folder / "model-00002-of-00002.safetensors").unlink()
    outcome = moetrt("plan", folder, "--json")
    assert outcome.code == 1
    assert "lacks model-00002-of-00002.safetensors" in json.loads(outcome.out)["problems"][0]


def test_a_config_file_may_be_given_itself(moetrt):
    assert moetrt("plan", DATA / "deepseek-v2" / "config.json").code == 0


def test_the_671b_model_is_planned_in_under_two_seconds():
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "exporter", "plan", DATA / "deepseek-v3", "--tensor", "16", "--json"], check=True, capture_output=True)
    assert time.monotonic() - begin < 2


BAD = {
    "broken JSON": (lambda text: text[:-20], "config.json is not valid JSON"),
    "not an object": (lambda text: "[1]", "holds a list, where an object is expected"),
    "missing field": (lambda text: text.replace('"kv_lora_rank"', '"other"'), "lacks kv_lora_rank"),
    "wrong type": (lambda text: text.replace('"hidden_size": 7168', '"hidden_size": "wide"'), "hidden_size is 'wide'"),
    "negative": (lambda text: text.replace('"num_hidden_layers": 61', '"num_hidden_layers": -1'), "num_hidden_layers is -1"),
    "unknown architecture": (lambda text: text.replace('"model_type": "deepseek_v3"', '"model_type": "llama"'), "model_type 'llama'"),
    "model_type no string": (lambda text: text.replace('"model_type": "deepseek_v3"', '"model_type": [1]'), "model_type [1]"),
    "groups": (lambda text: text.replace('"n_group": 8', '"n_group": 7'), "256 routed experts (n_routed_experts) do not form 7 equal groups"),
    "top-k": (lambda text: text.replace('"num_experts_per_tok": 8', '"num_experts_per_tok": 300'), "num_experts_per_tok 300"),
    "quantisation": (lambda text: text.replace('"quant_method": "fp8"', '"quant_method": "awq"'), "quant_method 'awq'; only FP8 with square weight blocks"),
    "sparse attention": (lambda text: text.replace('"model_type": "deepseek_v3"', '"model_type": "deepseek_v32"'), "DeepSeek-V3.2's sparse attention is not built"),
    "sparse attention, renamed": (lambda text: text.replace('"n_group": 8', '"n_group": 8, "index_topk": 2048'), "index_topk is 2048: the sparse attention"),
    "rope": (lambda text: text.replace('"type": "yarn"', '"type": "linear"'), "rope type is 'linear'"),
    "end token": (lambda text: text.replace('"eos_token_id": 1', '"eos_token_id": "one"'), "eos_token_id is 'one'"),
    "flag": (lambda text: text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": "no"'), "tie_word_embeddings is 'no'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_one_message_and_exit_1(moetrt, tmp_path, case):
    change, message = BAD[case]
    shutil.copy(DATA / "deepseek-v3" / "config.json", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(change(path.read_text()))
    outcome = moetrt("plan", tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert message in outcome.err
    assert outcome.err.startswith(f"Error: {path}")


def test_a_folder_without_config_is_refused(moetrt, tmp_path):
    outcome = moetrt("plan", tmp_path)
    assert outcome.code == 1
    assert "config.json: No such file" in outcome.err


@pytest.mark.parametrize("options", [["/nowhere"], [DATA, "--tensor", 0], [DATA, "--tensor", "two"], [DATA, "--precision", "int3"], [DATA, "--device-memory", -1], []])
def test_wrong_use_exits_2(moetrt, options):
    assert moetrt("plan", *options).code == 2
