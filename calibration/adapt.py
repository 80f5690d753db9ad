"""``moetrt quantize``: quantise, measure on held-out prompts, keep the most sensitive segments float, report."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.prompts import read_prompts, require_vocabulary
from engines.runtime.text import Text
from exporter import progress
from exporter.errors import LoadError, UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank

from .quantize import Job, Quantized, QuantizeRequest, perform, plan_quantization
from .report import Quality, Report, Sensitivity, WeightError, write_report
from .schemes import STATIC
from .sensitivity import Ladder, Score, choose_float, quantised_segments
from .table import Table

REPORT = "report.json"


@dataclass(frozen=True)
class AdaptiveRequest:
    """What ``moetrt quantize`` was asked for."""

    what: QuantizeRequest
    held_out: Path | None = None
    """Prompts that were not calibrated on."""
    max_kl: float | None = None
    """Mean KL of the logits, in nats, that segments are kept float for."""
    max_tokens: int = 512
    """A held-out prompt's tokens beyond these are left out."""

    def __post_init__(self) -> None:
        if self.max_kl is not None and self.held_out is None:
            raise UsageError("--max-kl needs --held-out.", hint="Give prompts that were not calibrated on.")
        if self.held_out is not None and self.what.rank is not None:
            raise UsageError("--held-out runs all ranks; --rank makes one.", hint="Quantise with --rank where no measuring is wanted.")

    @property
    def measured(self) -> str:
        """Digest of what is measured, and for what."""
        return files.digest([self.held_out and files.sha256_file(self.held_out), self.max_kl, self.max_tokens])


@dataclass(frozen=True)
class Evidence:
    """What was done, and what it cost."""

    made: Quantized
    quality: Quality | None
    """None where nothing was held out."""
    float_segments: tuple[str, ...]

    def summary(self) -> str:
        lines = [self.made.summary()]
        if self.float_segments:
            lines.append(f"kept float: {', '.join(self.float_segments)}")
        if self.quality:
            one = self.quality
            lines.append(f"held-out: perplexity {one.float_perplexity:.4f} → {one.perplexity:.4f}, mean KL {one.kl:.3g} nats, {one.tokens} tokens")
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        made, job = self.made, self.made.job
        sizes = {"made": list(job.todo), "kept": list(job.kept), "float_bytes": made.float_bytes, "quantized_bytes": made.quantized_bytes}
        return {"output": str(job.request.output), "scheme": job.request.scheme, "float_segments": list(self.float_segments), "quality": files.to_json(self.quality)} | sizes


Bars = Callable[..., AbstractContextManager[Callable[[int], None]]]
"""``bars(label, total, bytes=…)``: a bar of ``total`` steps, and what to call with each number of steps that were taken."""


def quantize_with_evidence(request: AdaptiveRequest, bars: Bars = partial(progress.bar, quiet=True)) -> Evidence:
    """Write the quantised graphs and the report beside them.

    With a budget, everything is quantised into a temporary folder first; only what is chosen is written to ``output``.
    :raises MoetrtError: graphs, table or prompts do not allow it.
    """
    known = _known(request)
    if known:
        return known
    what = request.what
    job = plan_quantization(what)
    rows = _held_out(request, job)
    if request.max_kl is None:
        made = _perform(job, bars)
        ladder = rows and Ladder(job.ranks, what.graphs, what.output, rows)
        return _finish(request, made, ladder and ladder.score(frozenset(_segments(what.output))))
    what.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{what.output.name}.", dir=what.output.parent) as scratch:
        every = Path(scratch) / "graphs"
        _perform(plan_quantization(replace(what, output=every)), bars)
        ladder, segments = Ladder(job.ranks, what.graphs, every, rows), _segments(every)
        walks = ladder.walks(segments)
        with bars("sensitivity", len(walks) * len(ladder.parts), bytes=False) as advance:
            ranking = ladder.sensitivities(walks, lambda name: advance(1))
        kept, score = choose_float(ladder, ranking, request.max_kl)
    made = _perform(plan_quantization(replace(what, float_segments=tuple(sorted(kept))), ranking), bars)
    return _finish(request, made, score, kept)


def _known(request: AdaptiveRequest) -> Evidence | None:
    """What an equal request came to, where its ranks and its report are there."""
    report = _read_report(request.what.output)
    if report is None or report.measured != request.measured:
        return None
    kept, ranking = tuple(one.segment for one in report.sensitivity if one.kept_float), {one.segment: one.kl for one in report.sensitivity}
    job = plan_quantization(replace(request.what, float_segments=tuple(sorted(kept))), ranking)
    return None if job.todo else Evidence(perform(job), report.quality, kept)


def _perform(job: Job, bars: Bars) -> Quantized:
    with bars("quantize", job.bytes) as advance:
        return perform(job, advance)


def _segments(graphs: Path) -> tuple[str, ...]:
    return quantised_segments({rank: record.quantization.weights for rank, record in records.read_ranks(GraphsRank, graphs).items() if record.quantization})


def _held_out(request: AdaptiveRequest, job: Job) -> list[list[int]] | None:
    """Read before anything is written: a file that cannot be read is refused at once."""
    if request.held_out is None:
        return None
    config = job.first.config
    rows = read_prompts(request.held_out, lambda: Text(request.what.graphs, config.bos))
    require_vocabulary(rows, config.vocab, of=f" of {request.held_out}")
    return [row[: min(request.max_tokens, config.positions)] for row in rows]


def _finish(asked: AdaptiveRequest, made: Quantized, score: Score | None, kept: tuple[str, ...] = ()) -> Evidence:
    quality = score and Quality(score.tokens, *score.perplexities, score.mean_kl)
    write_report(_report(asked.measured, made, quality, kept), made.job.request.output)
    return Evidence(made, quality, kept)


def _report(measured: str, made: Quantized, quality: Quality | None, kept: tuple[str, ...]) -> Report:
    request, table = made.job.request, made.job.decision.table
    modes = {name: mode for record in records.read_ranks(GraphsRank, request.output).values() if record.quantization for name, mode in record.quantization.weights.items()}
    errors = {name: error for name, error in (_known_errors(request.output) | made.errors).items() if name in modes}
    return Report(
        scheme=request.scheme,
        model=made.job.first.source.name,
        smooth=request.smooth,
        table=table,
        weights=tuple(WeightError(name, *error) for name, error in errors.items()),
        activation_errors=_activation_errors(table, modes) if table else {},
        sensitivity=tuple(Sensitivity(name, kl, name in kept) for name, kl in made.job.sensitivity.items()),
        quality=quality,
        float_bytes=made.float_bytes,
        quantized_bytes=made.quantized_bytes,
        measured=measured,
    )


def _activation_errors(table: Table, modes: dict[str, str]) -> dict[str, float]:
    known = {name: seen.error for name, seen in table.linears.items()} | {name: max(seen.errors) for name, seen in table.experts.items()}
    return {name: error for name, error in known.items() if error is not None and modes.get(name) == STATIC}


def _known_errors(output: Path) -> dict[str, tuple[float, int, int]]:
    """From the report that is there: of ranks that were not made now."""
    there = _read_report(output)
    return {one.name: (one.relative_l2, one.float_bytes, one.quantized_bytes) for one in (there.weights if there else ())}


def _read_report(output: Path) -> Report | None:
    """None where there is none of this version."""
    try:
        return files.read_record(Report, output / REPORT)
    except LoadError:
        return None
