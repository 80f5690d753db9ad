"""What ``moetrt bench`` does: one engine set in a process of its own, timed, weighed, and held against memory's bandwidth."""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import RunError, UsageError
from exporter.plan import files
from exporter.plan.manifest import EngineRank

from ..runtime.loading import read_set

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
RAN = "ran"
"""What the measuring process prints after each run, with its peak memory in bytes; last comes its answer."""


@dataclass(frozen=True)
class BenchRequest:
    """What ``moetrt bench`` was asked for."""

    engines: str
    prompt_tokens: int = 128
    new_tokens: int = 64
    repeats: int = 5
    batch: int = 1
    """Rows that go side by side."""
    threads: int = 0
    """Of the chain and of reading memory; 0 for the cores at hand."""

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "new_tokens": 2, "repeats": 1, "batch": 1, "threads": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {low} or more.")

    @property
    def used_threads(self) -> int:
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True)
class Spread:
    """How samples of one figure lie."""

    min: float
    lower_quartile: float
    median: float
    upper_quartile: float
    max: float


def spread(samples: Sequence[float]) -> Spread:
    """Median, quartiles and ends of at least one sample."""
    cuts = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return Spread(min(samples), *cuts, max(samples))


@dataclass(frozen=True)
class Measured:
    """What one process saw of one engine set."""

    request: BenchRequest
    arithmetic: str
    """Quantisation scheme, or the precision of float engines."""
    ranks: int
    load_seconds: float
    """Opening every session, after the libraries were imported."""
    cold_first_token_seconds: float
    """Of the first prompt after loading, which is in no other figure."""
    first_token_seconds: Spread
    prefill_tokens_per_second: Spread
    """Prompt tokens of all rows over the time to the first token."""
    decode_tokens_per_second: Spread
    """Tokens of all rows, over single steps of all repeats."""
    decode_run_tokens_per_second: Spread
    """The same over whole repeats: what other programs report."""
    peak_rss_bytes: int
    """Before bandwidth was measured."""
    weight_bytes: int
    """Ranges of the weights files that graphs refer to, each once."""
    cache_bytes: int
    step_bytes: int
    """What a decode step must read, in the middle of the new tokens."""
    read_bandwidth: float
    """Bytes per second, the best pass."""
    median_read_bandwidth: float
    cpu: str
    versions: dict[str, str]
    date: str

    @property
    def roofline_tokens_per_second(self) -> float:
        """Decode, if reading memory were all."""
        return self.request.batch * self.read_bandwidth / self.step_bytes

    def report(self) -> dict[str, Any]:
        """The keys of ``moetrt bench --json``: flat, units in the names."""
        asked = files.to_json(self.request) | {"threads": self.request.used_threads}
        seen = {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}
        seen["read_bandwidth_gb_per_second"] = seen.pop("read_bandwidth") / 1e9
        seen["read_bandwidth_median_gb_per_second"] = seen.pop("median_read_bandwidth") / 1e9
        for name in ("first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "decode_run_tokens_per_second"):
            values = vars(getattr(self, name))
            seen |= {name: values["median"]} | {f"{name}_{part}": value for part, value in values.items() if part != "median"}
        seen |= {
            "load_seconds_per_gb": self.load_seconds / (self.weight_bytes / 1e9),
            "peak_rss_over_weights": self.peak_rss_bytes / self.weight_bytes,
            "peak_rss_over_weights_and_cache": self.peak_rss_bytes / (self.weight_bytes + self.cache_bytes),
            "roofline_tokens_per_second": self.roofline_tokens_per_second,
            "decode_share_of_roofline": self.decode_tokens_per_second.median / self.roofline_tokens_per_second,
        }
        return asked | {name: _short(value) for name, value in seen.items()} | {f"version_{name}": version for name, version in self.versions.items()}

    def summary(self) -> str:
        one, said = self.request, self.report()
        rows = (
            ("prefill", f"{_range(self.prefill_tokens_per_second)} tokens/s, {one.batch} × {one.prompt_tokens} tokens"),
            ("decode", f"{_range(self.decode_tokens_per_second)} tokens/s, single steps of {one.repeats} × {one.new_tokens} tokens"),
            ("first token", f"{said['first_token_seconds'] * 1e3:.1f} ms; {self.cold_first_token_seconds * 1e3:.1f} ms after loading"),
            ("load", f"{self.load_seconds:.2f} s, {said['load_seconds_per_gb']:.2f} s a GB"),
            ("peak memory", f"{self.peak_rss_bytes / 1e6:.0f} MB, {said['peak_rss_over_weights_and_cache']:.2f} of {self.weight_bytes / 1e6:.0f} MB weights and {self.cache_bytes / 1e6:.2f} MB cache"),
            ("roofline", f"{said['decode_share_of_roofline']:.2f} of {self.roofline_tokens_per_second:.1f} tokens/s: a step reads {self.step_bytes / 1e6:.1f} MB, memory gives {self.read_bandwidth / 1e9:.1f} GB/s"),
        )  # fmt: skip
        head = f"{one.engines}: {self.arithmetic}, {self.ranks} rank(s), batch {one.batch}, {one.used_threads} thread(s), {self.cpu}"
        return "\n".join([head, *(f"  {name:12} {value}" for name, value in rows)])


def _range(values: Spread) -> str:
    return f"{values.median:.1f} ({values.min:.1f} to {values.max:.1f}, half of them {values.lower_quartile:.1f} to {values.upper_quartile:.1f})"


def _short(value: Any) -> Any:
    """Six significant digits: more is noise."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _require_graphs(folder: str) -> None:
    """What a step must read is told by graphs; of a plan it is not known."""
    first = read_set(Path(folder))[0]
    if isinstance(first, EngineRank) and not all(file.endswith(".onnx") for file in first.assembly.graphs.values()):
        raise RunError(f"{folder} holds plans of {first.backend}, which are not weighed against memory's bandwidth.", hint="`moetrt run ENGINES --json` tells how fast prompts and tokens go.")


def bench(request: BenchRequest, advance: Callable[[int, int], None] = lambda count, peak: None) -> Measured:
    """Measure in a new process, so that load time and peak memory are the engines' own.

    :param advance: called with 1 and the process's peak memory after each of the ``repeats`` and one runs.
    :raises MoetrtError: the engines do not load here, or do not serve the request.
    """
    _require_graphs(request.engines)
    paths, answer = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), None
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "engines.bench.measure", json.dumps(files.to_json(request))],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"PYTHONPATH": paths},
        ) as child,
    ):  # fmt: skip
        log.info("measuring %s in process %d", request.engines, child.pid)
        for line in child.stdout:
            if line.startswith(RAN):
                advance(1, int(line.split()[1]))
            else:
                answer = line
        if child.wait() or answer is None:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise RunError(f"the measuring process ended with code {child.returncode}: {said[0]}", hint="Code -9 means that memory ran out.")
    found = json.loads(answer)
    if "refused" in found:
        raise RunError(found["refused"], found["hint"])
    return files.from_json(Measured, found, "the measuring process's answer")
