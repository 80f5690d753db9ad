"""``moetrt quantize``: quantise, measure on held-out prompts, keep the most sensitive segments float, report."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.prompts import read_prompts
from engines.runtime.text import Text
from exporter.errors import UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank

from .calibrate import require_float
from .quantize import Decision, Quantized, QuantizeRequest, decide, quantize
from .report import Quality, Report, Sensitivity, WeightError, activation_error, write_report
from .sensitivity import Ladder, choose_float, quantised_segments

REPORT = "report.json"


@dataclass(frozen=True)
class AdaptiveRequest:
    """What ``moetrt quantize`` was asked for."""

    graphs: Path
    output: Path
    table: Path | None = None
    scheme: str = "int8"
    smooth: float | None = None
    head: str = "auto"
    held_out: Path | None = None
    max_kl: float | None = None
    max_tokens: int = 512
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and self.held_out is None:
            raise UsageError("--max-kl needs --held-out.", hint="Give prompts that were not calibrated on.")
        if self.held_out is not None and self.rank is not None:
            raise UsageError("--held-out runs all ranks; --rank makes one.", hint="Quantise with --rank where no measuring is wanted.")

    def plain(self, output: Path, float_segments: tuple[str, ...] = ()) -> QuantizeRequest:
        return QuantizeRequest(self.graphs, output, self.table, self.scheme, self.smooth, self.head, self.rank, float_segments)


@dataclass(frozen=True)
class Evidence:
    """What was done, and what it cost."""

    made: Quantized
    quality: Quality | None
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
        made = self.made
        sizes = {"made": list(made.made), "kept": list(made.kept), "float_bytes": made.float_bytes, "int8_bytes": made.int8_bytes}
        return {"output": str(made.request.output), "scheme": made.request.scheme, "float_segments": list(self.float_segments), "quality": files.to_json(self.quality)} | sizes


Told = Callable[[int, int, str], None]


def quantize_with_evidence(request: AdaptiveRequest, told: Told = lambda number, of, what: None) -> Evidence:
    """Write the quantised graphs and the report beside them.

    With a budget, everything is quantised into a temporary folder first; only what is chosen is written to ``output``.
    :raises MoetrtError: graphs, table or prompts do not allow it.
    """
    ranks = require_float(request.graphs)
    if request.max_kl is None:
        made = quantize(request.plain(request.output))
        ladder = _ladder(request, ranks, request.output)
        segments = frozenset(_segments(request.output))
        return _finish(request, ranks, made, ladder and ladder.score(segments), {}, ())
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{request.output.name}.", dir=request.output.parent) as scratch:
        every = Path(scratch) / "graphs"
        quantize(request.plain(every))
        ladder, segments = _ladder(request, ranks, every), _segments(every)
        ranking = ladder.sensitivities(segments, lambda name: told(0, len(segments), name))
        kept, score = choose_float(ladder, ranking, request.max_kl)
    made = quantize(request.plain(request.output, tuple(sorted(kept))), sensitivity=ranking)
    return _finish(request, ranks, made, score, ranking, kept)


def _segments(graphs: Path) -> tuple[str, ...]:
    return quantised_segments({rank: record.quantization.weights for rank, record in records.read_ranks(GraphsRank, graphs).items() if record.quantization})


def _ladder(request: AdaptiveRequest, ranks: dict[int, GraphsRank], quantised: Path) -> Ladder | None:
    if request.held_out is None:
        return None
    rows = read_prompts(request.held_out, lambda: Text(request.graphs, ranks[0].config.bos))
    most = min(request.max_tokens, ranks[0].config.positions)
    return Ladder(ranks, request.graphs, quantised, [row[:most] for row in rows])


def _finish(request: AdaptiveRequest, ranks: dict[int, GraphsRank], made: Quantized, score: Any, ranking: dict[str, float], kept: tuple[str, ...]) -> Evidence:
    quality = None
    if score is not None:
        before, after = score.perplexities
        quality = Quality(score.tokens, before, after, score.mean_kl)
    if made.made or quality:
        decision = decide(made.request, ranks, ranking)
        write_report(_report(request, ranks, made, quality, decision, kept), request.output)
    return Evidence(made, quality, kept)


def _report(request: AdaptiveRequest, ranks: dict[int, GraphsRank], made: Quantized, quality: Quality | None, decision: Decision, kept: tuple[str, ...]) -> Report:
    errors = made.errors or _known_errors(request.output)
    linears = decision.table.linears if decision.table else {}
    modes = {name: mode for record in records.read_ranks(GraphsRank, request.output).values() if record.quantization for name, mode in record.quantization.weights.items()}
    return Report(
        scheme=request.scheme,
        model=ranks[0].source.name,
        smooth=request.smooth,
        table=decision.table,
        weights=tuple(WeightError(name, *error) for name, error in errors.items()),
        activation_errors={name: activation_error(seen) for name, seen in linears.items() if modes.get(name) == "static" and seen.histogram},
        sensitivity=tuple(Sensitivity(name, kl, name in kept) for name, kl in decision.sensitivity.items()),
        quality=quality,
        float_bytes=made.float_bytes,
        int8_bytes=made.int8_bytes,
    )


def _known_errors(output: Path) -> dict[str, tuple[float, int, int]]:
    """From the report that is there, where no rank was made now."""
    path = output / REPORT
    if not path.is_file():
        return {}
    there = files.read_record(Report, path)
    return {one.name: (one.relative_l2, one.float_bytes, one.int8_bytes) for one in there.weights}
