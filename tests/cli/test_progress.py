"""Progress as a terminal of 80 columns shows it, and nothing of it anywhere else."""

import re
import shutil

import pytest
from terminal import in_terminal

from exporter.progress import bar, ranks, rounds

LONG = """
import time
from exporter.progress import bar, ranks, rounds
with bar("sensitivity", 10**11) as advance:
    for _ in range(5):
        advance(10**10)
        time.sleep(0.12)
    advance(10**10, 1_234_500_000)
with rounds("calibrate") as told:
    for number in range(2):
        for step in range(3):
            told(number, 3, "layers.60.attention")
with ranks() as told:
    for step in range(6):
        for rank in (0, 1, 15):
            told(rank, "layers.60.attention", step / (5 + rank), 123_400_000_000)
        time.sleep(0.12)
"""
SPEAKING = """
import click, logging, time
from exporter import logs
from exporter.progress import bar
logs.show(1)
with bar("work", 4, bytes=False) as advance:
    for step in range(4):
        advance(1)
        time.sleep(0.12)
        logging.getLogger("engines.some").info("step %d", step)
        click.echo(f"note {step}", err=True)
        with bar("within", 2, bytes=False) as inner:
            inner(2)
"""


@pytest.fixture(scope="module")
def drawn():
    return in_terminal(["-c", LONG])


def test_a_line_has_label_percentage_rate_time_and_peak_memory(drawn):
    assert re.search(r"^sensitivity +━+ 100% [\d,]+ MB/s 0:01 peak 1\.2 GB$", drawn.screen.lines[0])
    assert re.search(r"sensitivity .*\d+%.*MB/s.* 0:00 ETA 0:0\d", drawn.plain)


def test_each_round_and_each_rank_has_a_line(drawn):
    assert [line.partition("  ")[0].partition(" layers")[0] for line in drawn.screen.lines if line] == ["sensitivity", "calibrate", "calibrate 2", "rank 0", "rank 1", "rank 15"]
    assert re.search(r"^rank 1 +layers\.60\.attention ━.* 83% .*ETA 0:0\d peak 123\.4 GB$", drawn.screen.lines[4])


def test_no_line_is_longer_than_the_terminal(drawn):
    assert drawn.screen.overflows == 0
    assert max(map(len, drawn.screen.lines)) <= 80
    assert in_terminal(["-c", LONG], width=50).screen.overflows == 0


def test_what_others_say_meanwhile_stands_above_the_bar():
    lines = in_terminal(["-c", SPEAKING]).screen.lines
    said = [line for line in lines if "step" in line or "note" in line][:8]
    assert [line.split(" ", 1)[1] if "INFO" in line else line for line in said if "steps/s" not in line] == [
        text for step in range(4) for text in (f"INFO  engines.some: step {step}", f"note {step}")
    ]
    assert sum(line.startswith("work ") for line in lines) == 1
    assert sum(line.startswith("within ") for line in lines) == 4


def test_no_color_means_none():
    assert re.search(r"\x1b\[[\d;]*3\d", in_terminal(["-c", LONG]).raw)
    assert not re.search(r"\x1b\[[\d;]*(3|4|9|10)\d(;[\d;]*)?m", in_terminal(["-c", LONG], NO_COLOR="1").raw)


@pytest.mark.parametrize("open_bar", [lambda: bar("x", 3), lambda: rounds("x"), ranks])
def test_piped_nothing_is_written(open_bar, capfd):
    with open_bar() as told:
        told(*{"bar": (1,), "rounds": (0, 1, "x")}.get(told.__qualname__.partition(".")[0], (0, "x", 0.5)))
    assert capfd.readouterr() == ("", "")


def test_quiet_is_quiet_on_a_terminal_too():
    assert in_terminal(["-c", "from exporter.progress import bar\nwith bar('x', 3, quiet=True) as advance: advance(3)"]).raw == ""


def test_without_steps_there_is_no_bar():
    assert in_terminal(["-c", "from exporter.progress import bar\nwith bar('x', 0) as advance: advance(0)"]).raw == ""


@pytest.mark.parametrize("jobs", [1, 2])
def test_build_shows_a_line_a_rank_and_its_result_on_stdout_alone(engines, tmp_path, jobs):
    words = ["-m", "exporter", "build", engines("v3", 2).parent / "graphs", "--output", tmp_path / "ort", "--jobs", jobs]
    shown = in_terminal(words, out_piped=True)
    assert shown.code == 0
    assert [line.split()[:3] for line in shown.screen.lines if line] == [["rank", "0", "done"], ["rank", "1", "done"]]
    assert shown.out.endswith("MB\n")
    assert "\x1b" not in shown.out
    assert shown.screen.overflows == 0
    shutil.rmtree(tmp_path / "ort")
    assert in_terminal([*words, "--quiet"], out_piped=True).raw == ""


def test_convert_calibrate_quantize_and_bench_draw_and_obey_quiet(engines, checkpoint, tmp_path):
    graphs = engines("v3").parent / "graphs"
    (tmp_path / "prompts.jsonl").write_text('{"token_ids": [5, 9, 2, 77]}\n')
    lines = {
        "convert": ["convert", checkpoint("v3"), "--output", tmp_path / "shards"],
        "calibrate": ["calibrate", graphs, "--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "table.json"],
        "quantize": ["quantize", graphs, "--scheme", "int8-weights", "--output", tmp_path / "int8"],
        "measuring": ["bench", engines("v3"), "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 1],
    }
    for label, words in lines.items():
        shown = in_terminal(["-m", "exporter", *words], out_piped=True)
        assert shown.code == 0, shown.raw
        assert re.search(rf"^{label} .*100% .*peak \d", shown.screen.lines[0]), label
        assert in_terminal(["-m", "exporter", *words, "--quiet"], out_piped=True).raw == "", label
