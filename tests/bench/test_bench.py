"""`moetrt bench`: the keys it gives, that they fit together, and what it refuses. Times are not judged."""

import json
from dataclasses import replace

import pytest

from engines.bench.bandwidth import buffer_bytes, read_bandwidth
from engines.bench.bench import BenchRequest, Measured, Spread, spread
from exporter.errors import UsageError
from exporter.plan import files

FLAT = Spread(20.0, 20.0, 20.0, 20.0, 20.0)
MEASURED = Measured(
    BenchRequest("engines"), "int8", 1, 2.0, 0.3, FLAT, FLAT, FLAT, FLAT, peak_rss_bytes=3_000_000_000, weight_bytes=1_900_000_000, cache_bytes=100_000_000,
    step_bytes=400_000_000, read_bandwidth=40e9, median_read_bandwidth=39e9, cpu="a CPU", versions={}, date="2026-11-26",
)  # fmt: skip


def test_the_roofline_is_bandwidth_over_the_bytes_of_a_step():
    report = MEASURED.report()
    assert report["roofline_tokens_per_second"] == 100
    assert report["decode_share_of_roofline"] == 0.2
    assert replace(MEASURED, request=BenchRequest("engines", batch=4)).report()["decode_share_of_roofline"] == 0.05


def test_memory_is_told_over_what_has_to_be_held():
    assert MEASURED.report()["peak_rss_over_weights_and_cache"] == 1.5


def test_a_spread_has_its_samples_quartiles():
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0, 3.0, 3.0)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(1.0, 2.0, 3.0, 4.0, 5.0)


def test_what_was_measured_reads_back_equal():
    assert files.from_json(Measured, json.loads(files.dump(MEASURED)), "here") == MEASURED


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_memory_has_a_speed(threads):
    seen = read_bandwidth(threads, size=1 << 22, passes=3)
    assert seen.best >= seen.median > 0


def test_the_buffer_is_large_whatever_the_machine_says():
    assert buffer_bytes() >= 1 << 28


@pytest.mark.parametrize(("field", "value"), [("prompt_tokens", 0), ("new_tokens", 1), ("repeats", 0), ("batch", 0), ("threads", -1)])
def test_what_cannot_be_measured_is_refused_with_the_options_name(field, value):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} is {value}"):
        replace(BenchRequest("engines"), **{field: value})


SMALL = ("--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 1)


@pytest.mark.parametrize(("tensor", "batch"), [(1, 1), (2, 3)])
def test_bench_prints_flat_keys_of_positive_numbers(moetrt, engines, tensor, batch):
    result = moetrt("bench", engines("v3", tensor), *SMALL, "--batch", batch, "--threads", 2, "--json")
    report = json.loads(result.out)
    assert result.code == 0
    assert (report["batch"], report["ranks"], report["threads"], report["arithmetic"]) == (batch, tensor, 2, "fp32")
    numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
    wanted = {"prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds", "load_seconds", "peak_rss_bytes", "weight_bytes", "cache_bytes"}
    wanted |= {"step_bytes", "read_bandwidth_gb_per_second", "decode_share_of_roofline", "peak_rss_over_weights_and_cache", "decode_tokens_per_second_max"}
    assert wanted <= set(numbers)
    assert all(value > 0 for value in numbers.values())


def test_bench_says_it_in_words(moetrt, engines):
    said = moetrt("bench", engines("v3", 1), *SMALL).out
    assert all(word in said for word in ("prefill", "decode", "first token", "load", "peak memory", "roofline", "GB/s"))


def test_engines_that_are_too_short_are_refused(moetrt, engines):
    result = moetrt("bench", engines("v3", 1), "--prompt-tokens", 100, "--new-tokens", 64)
    assert result.code == 1
    assert "beyond the engines' context of 128" in result.err
    assert "--max-context" in result.err


def test_what_is_no_engines_is_refused(moetrt, checkpoint):
    assert "no finished rank" in moetrt("bench", checkpoint("v3")).err
