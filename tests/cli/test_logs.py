"""`-v`: what is done and why, on stderr, before and after the command's name alike."""

import logging

import pytest

from exporter import logs


@pytest.fixture
def graphs(engines):
    return engines("v3", 2).parent / "graphs"


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbose_says_what_is_done_and_keeps_stdout_clean(moetrt, graphs, tmp_path, place):
    words = ["build", graphs, "--output", tmp_path / "ort"]
    result = moetrt("-v", *words) if place == "before" else moetrt(*words, "-v")
    assert len(result.out.splitlines()) == 1
    assert "INFO  engines.backends: backend ort: onnx" in result.err
    assert "rank 1: built for ort in" in result.err
    assert "DEBUG" not in result.err


def test_twice_verbose_tells_lowerings_and_why_others_declined(moetrt, graphs, tmp_path):
    for words in (["-vv", "build"], ["-v", "build", "-v"], ["build", "-vv"]):
        result = moetrt(*words, graphs, "--output", tmp_path / "-".join(words))
        assert "DEBUG exporter.lowering: layers.1.moe_ffn for ort: Experts → moe_ort × 1" in result.err


def test_a_kept_rank_says_why_and_a_remade_one_too(moetrt, graphs, tmp_path):
    moetrt("build", graphs, "--output", tmp_path / "ort")
    assert "rank-01/manifest.json is kept: an equal request made it" in moetrt("build", graphs, "--output", tmp_path / "ort", "-v").err
    assert "is of another request" in moetrt("build", graphs, "--output", tmp_path / "ort", "--max-batch", 2, "-v").err
    (tmp_path / "ort/rank-01/embed.onnx").write_bytes(b"")
    assert "made anew: " in moetrt("build", graphs, "--output", tmp_path / "ort", "--max-batch", 2, "-v").err


def test_opening_engines_says_how_long_it_took(moetrt, engines):
    assert "2 rank(s) of ort, joined into one graph, in " in moetrt("run", engines("v3", 2), "--token-ids", "5", "--max-tokens", 1, "-v").err


def test_messages_of_ranks_in_other_processes_arrive(moetrt, graphs, tmp_path):
    result = moetrt("build", graphs, "--output", tmp_path / "ort", "--jobs", 2, "-vv")
    assert all(f"rank {rank}: built for ort in" in result.err for rank in (0, 1))
    assert f"wrote {tmp_path}/ort/rank-01/embed.onnx" in result.err


def test_one_verbose_command_leaves_the_next_silent(moetrt, graphs):
    assert moetrt("-v", "build", graphs, "--output", graphs.parent / "ort").err
    assert not moetrt("build", graphs, "--output", graphs.parent / "ort").err
    assert not any(logging.getLogger(name).handlers for name in logs.PACKAGES)


def test_every_command_takes_it(moetrt):
    from exporter.cli import COMMANDS

    for name in COMMANDS:
        assert "--verbose" in moetrt(name, "--help").out
