"""The benchmark of accuracy: its arithmetic by hand, and what it says of a peer that is not there. No model is run."""

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import llama_accuracy  # noqa: E402  (a script's folder)
import llama_cpp  # noqa: E402
from llama_accuracy import Row  # noqa: E402


def test_a_row_counts_windows_that_follow_one_another():
    rng, held = np.random.default_rng(0), [[1, 2, 3], [0, 1]]
    base, logits = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    row = llama_accuracy.row_of(base, logits, logits, held)
    assert (row.own.seen, row.own.predicted, row.ours.kl) == (5, 3, 0.0)
    assert sum(row.windows) == pytest.approx(row.own.kl_sum)
    assert len(row.windows) == 2 and row.windows[0] > 0


def test_the_interval_of_a_ratio_holds_it_and_is_a_point_where_windows_agree():
    rows = {"a": Row(windows=(1.0, 2.0, 3.0)), "b": Row(windows=(2.0, 4.0, 6.0)), "c": Row(windows=(3.0, 2.0, 2.0))}
    assert llama_accuracy.compared("a", "b", rows) == {"ours": "a", "peer": "b", "kl_ratio": 0.5, "low": 0.5, "high": 0.5}
    pair = llama_accuracy.compared("a", "c", rows)
    assert pair["low"] < pair["kl_ratio"] < pair["high"]


@pytest.mark.parametrize(("low", "high", "word"), [(0.7, 0.9, "no worse"), (0.9, 1.1, "not told apart"), (1.1, 1.2, "WORSE")])
def test_a_verdict_needs_the_whole_interval(low: float, high: float, word: str) -> None:
    assert word in llama_accuracy.verdict({"ours": "a", "peer": "b", "kl_ratio": 1.0, "low": low, "high": high})


def test_every_pair_names_two_rows():
    ours = {scheme + ", fast" * fast + llama_accuracy.OPS * own for scheme, fast, own in llama_accuracy.OURS}
    peers = {peer.name for peer in llama_accuracy.PEERS}
    assert all(one in ours and other in peers for one, other in llama_accuracy.PAIRS)


def test_scales_count_16_bits_where_each_of_them_is_a_value_of_bfloat16s(tmp_path):
    file, scales = tmp_path / "weights.safetensors", np.array([1, 0.5078125, 0.01], np.float32)
    save_file({"short": scales[:2], "long": scales}, file)
    assert llama_accuracy.is_short(file, "short") and not llama_accuracy.is_short(file, "long")


def test_bindings_are_found_beside_the_sources_or_two_floors_above(tmp_path):
    for name in (*(f"build/bin/{tool}" for tool in llama_cpp.TOOLS), "vendor/llama.cpp/convert_hf_to_gguf.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = llama_cpp.LlamaCpp(tmp_path / "build", tmp_path / "vendor/llama.cpp")
    with pytest.raises(llama_cpp.PeerError, match="have no llama_cpp.py"):
        _ = found.bindings
    for place in (tmp_path / "vendor/llama_cpp", tmp_path / "llama_cpp"):
        place.mkdir()
        (place / "llama_cpp.py").touch()
        assert found.bindings == place
