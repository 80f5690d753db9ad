"""The benchmark of speed runs and has its keys; its arithmetic by hand. Times are not judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import llama_cpp  # noqa: E402  (a script's folder)
import speed  # noqa: E402


def figures(**changes: float) -> dict[str, float]:
    return {"prefill_tokens_per_second": 100.0, "decode_tokens_per_second": 10.0, "step_bytes": 1e9, "load_seconds": 2.0, "peak_rss_bytes": 3e9} | changes


def test_ratios_are_of_medians_over_rounds():
    ours = [figures(decode_tokens_per_second=rate, read_bandwidth_gb_per_second=40.0, batch=1) for rate in (30.0, 10.0, 20.0)]
    peer = [figures(decode_tokens_per_second=rate) for rate in (8.0, 16.0, 12.0)]
    flat = speed.summary({"int8": ours, "llama_q8_0": peer})
    assert flat["int8_decode_tokens_per_second"] == 20
    assert (flat["int8_decode_tokens_per_second_min"], flat["int8_decode_tokens_per_second_max"]) == (10, 30)
    assert flat["int8_decode_over_llama_q8_0"] == pytest.approx(20 / 12, rel=1e-4)
    assert flat["int8_prefill_over_llama_q8_0"] == 1
    assert flat["int8_decode_share_of_roofline"] == 20 * 1e9 / 40e9
    assert flat["llama_q8_0_decode_share_of_roofline"] == 12 * 1e9 / 40e9


def test_a_step_of_many_rows_is_one_reading_of_the_weights():
    seen = [figures(decode_tokens_per_second=80.0, read_bandwidth_gb_per_second=40.0, batch=8)]
    assert speed.summary({"int8_batch_8": seen})["int8_batch_8_decode_share_of_roofline"] == 80 / 8 * 1e9 / 40e9


def test_a_peer_that_is_not_there_has_no_ratio():
    flat = speed.summary({"int8": [figures(read_bandwidth_gb_per_second=40.0, batch=1)]})
    assert not [name for name in flat if "llama" in name or "transformers" in name]


def test_a_series_that_fails_is_left_out_with_its_reason():
    def fail() -> dict[str, float]:
        raise llama_cpp.PeerError("it fell over")

    skipped: dict[str, str] = {}
    seen = speed.measure({"int8": figures, "llama_q8_0": fail}, 2, skipped)
    assert list(seen) == ["int8"] and len(seen["int8"]) == 2
    assert skipped == {"llama_q8_0": "it fell over"}


def test_a_build_that_lacks_a_tool_is_named(tmp_path):
    with pytest.raises(llama_cpp.PeerError, match="llama-bench is not there"):
        llama_cpp.find(tmp_path, tmp_path, tmp_path, fetch=False)
    with pytest.raises(llama_cpp.PeerError, match="--get-llama-cpp"):
        llama_cpp.find(None, None, tmp_path, fetch=False)


def test_the_smoke_benchmark_writes_its_keys(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/speed.py", "--smoke", "--no-transformers", "--work", tmp_path / "work", "--json", tmp_path / "bench.json"]
    command += ["--llama-cpp", tmp_path / "nothing", "--llama-source", tmp_path / "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bench.json").read_text())
    wanted = {"int8_decode_share_of_roofline", "int8_decode_tokens_per_second", "int8_prefill_tokens_per_second", "int8_load_seconds_per_gb"}
    wanted |= {"int8_peak_rss_over_weights_and_cache", "read_bandwidth_gb_per_second", "batch_8_decode_over_batch_1", "tp2_decode_over_tp1"}
    assert wanted <= set(record)
    assert all(record[name] > 0 for name in wanted)
    assert not [name for name, value in record.items() if isinstance(value, dict | list)], "keys are flat"
    assert set(speed.under(record, "skipped_")) - {"our kernels"} == {"llama.cpp", "transformers"}
    assert "llama.cpp: skipped" in done.stdout
    assert "transformers: skipped" in done.stdout
    assert record["cpu"] and record["date"] and record["version_onnxruntime"]
