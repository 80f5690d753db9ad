"""Prompts through portable graphs become a table of ranges, once every expert has seen enough tokens or is named."""

import importlib.metadata
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.prompts import read_prompts, require_vocabulary
from engines.runtime.loading import read_set
from engines.runtime.text import Text
from exporter import __version__
from exporter.errors import LoadError, MoetrtError, RunError, UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import GraphsRank

from .collect import Collection, Seen
from .observers import METHODS, Histogram, amax, relative_error
from .table import ExpertRanges, Range, Table, read_table
from .walk import batches

log = logging.getLogger(__name__)
COARSE = 64
"""Bins of a histogram in the table: enough to draw."""


@dataclass(frozen=True)
class CalibrationRequest:
    """What ``moetrt calibrate`` was asked for."""

    graphs: Path
    prompts: Path
    output: Path
    samples: int = 128
    """Prompts to begin with."""
    max_tokens: int = 512
    """A prompt's tokens beyond these are left out."""
    batch: int = 8
    method: str = "mse"
    min_tokens_per_expert: int = 32
    seed: int | None = None
    """Draws the prompts; None takes them in order."""
    strict: bool = False
    """Refuse rather than fall back, where an expert lacks tokens."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no method {self.method!r}.", hint=f"Known are {', '.join(METHODS)}.")


@dataclass(frozen=True)
class Calibration:
    """What came of it."""

    output: Path
    table: Table
    kept: bool
    """It was there already, made by an equal request."""

    def report(self) -> dict[str, Any]:
        """The keys of ``moetrt calibrate --json``."""
        table = self.table
        told = {name: getattr(table, name) for name in ("method", "samples", "topped_up", "tokens")}
        return {"output": str(self.output), "kept": self.kept, "ranges": len(table.linears), "fallbacks": fallbacks(table)} | told

    def summary(self) -> str:
        table, fallen = self.table, fallbacks(self.table)
        lines = [
            f"{self.output}: {'kept; ' if self.kept else ''}{len(table.linears)} ranges by {table.method} over {table.tokens} tokens of {table.samples} prompts"
            + (f" ({table.topped_up} to top up experts)" if table.topped_up else "")
        ]
        if table.experts:
            least = min(min(one.tokens) for one in table.experts.values())
            lines.append(f"experts: {least} tokens or more each" + (f"; {len(fallen)} have their layer's pooled range" if fallen else ""))
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in list(fallen.items())[:8]), *(["  …"] if len(fallen) > 8 else [])])


def fallbacks(table: Table) -> dict[str, str]:
    """``layers.3.moe_ffn.experts.down[7]`` → why it has the pooled range."""
    return {f"{name}[{expert}]": why for name, one in table.experts.items() for expert, why in one.fallbacks.items()}


Told = Callable[[int, int, str], None]
"""Called with the round, how many segments it has, and the one that is done."""


@dataclass(frozen=True)
class Job:
    """What has to be done: the decision before the act."""

    request: CalibrationRequest
    ranks: dict[int, GraphsRank]
    rows: list[list[int]]
    """Token ids of all prompts, in the order in which they are used."""
    digest: str
    there: Table | None
    """The table of an equal request, made before."""

    @property
    def first(self) -> list[list[int]]:
        """Token ids of the prompts to begin with."""
        return self.rows[: self.request.samples]

    def summary(self) -> str:
        if self.there:
            return f"{self.request.output}: would be kept"
        rest = len(self.rows) - len(self.first)
        return f"{self.request.output}: would see {sum(map(len, self.first))} tokens of {len(self.first)} prompts" + (f", {rest} more where experts lack tokens" if rest else "")

    def report(self) -> dict[str, Any]:
        """What ``moetrt calibrate --dry-run --json`` prints."""
        return {"output": str(self.request.output), "kept": self.there is not None, "prompts": len(self.first), "tokens": sum(map(len, self.first)), "prompts_in_reserve": len(self.rows) - len(self.first)}


def plan_calibration(request: CalibrationRequest) -> Job:
    """Read graphs and prompts.

    :raises MoetrtError: they do not allow it.
    """
    ranks = require_float(request.graphs)
    rows, digest = _rows(request, ranks[0].config), _digest(request, ranks)
    return Job(request, ranks, rows, digest, _there(request.output, digest))


def _there(path: Path, digest: str) -> Table | None:
    """The table of an equal request; None where there is another, of whatever version: it is written over.

    :raises LoadError: the file is no table at all.
    """
    if not path.is_file():
        return None
    try:
        kind = files.read_json(path).get("kind")
    except (LoadError, AttributeError):
        kind = None
    if kind != Table.kind:
        raise LoadError(f"{path} is there and is no calibration table.", hint="Choose another --output.")
    try:
        found = read_table(path)
    except LoadError:
        return None
    return found if found.request == digest else None


def calibrate(request: CalibrationRequest, told: Told = lambda number, of, what: None) -> Calibration:
    """Make the table; what an interrupted run had finished is used again.

    :raises MoetrtError: graphs or prompts do not allow it, an activation is not finite, or with ``strict`` an expert lacks tokens.
    """
    job = plan_calibration(request)
    ranks, rows, digest = job.ranks, job.rows, job.digest
    if job.there:
        log.info("%s is kept: an equal request made it", request.output)
        _require_covered(request, job.there)
        return Calibration(request.output, job.there, kept=True)
    scratch = request.output.with_name(f".{request.output.name}.partial")
    collection = Collection(request.graphs, ranks, scratch, digest)
    try:
        used = _collect(job, collection, told)
    except MoetrtError:  # what the graphs gave is of no use; an interruption keeps it
        collection.close()
        raise
    table = _table(request, ranks[0], collection, rows[:used], digest)
    _require_covered(request, table)
    files.write_record(request.output, table)
    collection.close()
    return Calibration(request.output, table, kept=False)


def _collect(job: Job, collection: Collection, told: Told) -> int:
    """Rounds of prompts until no expert lacks tokens. :returns: how many prompts were used."""
    used, number = 0, 0
    while used < len(job.rows) and (not number or _lacking(job.request, collection)):
        chosen = job.rows[used : used + job.request.samples]
        log.info("round %d: %d prompts of %d tokens%s", number, len(chosen), sum(map(len, chosen)), ", since experts lack tokens" if number else "")
        collection.run(number, batches(chosen, job.request.batch), lambda name, number=number: told(number, len(collection.parts), name))
        used, number = used + len(chosen), number + 1
    return used


def require_float(graphs: Path, rank: int | None = None) -> dict[int, GraphsRank]:
    """The graphs' ranks: a whole set, or one rank alone; with weights, not quantised yet.

    :raises LoadError: they are something else.
    """
    ranks = read_set(graphs) if rank is None else records.read_wanted(GraphsRank, graphs, rank)
    first = next(iter(ranks.values()))
    if not isinstance(first, GraphsRank):
        raise LoadError(f"{graphs} holds engines.", hint="Give the folder that `moetrt export` wrote.")
    if first.weights is None:
        raise LoadError(f"{graphs} holds graphs without weights.", hint="Export again without --graphs-only.")
    if first.quantization is not None:
        raise LoadError(f"{graphs} is quantised already ({first.quantization.scheme}).", hint="Give the float graphs that `moetrt export` wrote.")
    for rank, record in ranks.items():
        records.check_files(graphs / records.rank_folder(rank), record.files)
    return ranks


def _rows(request: CalibrationRequest, config: ModelConfig) -> list[list[int]]:
    rows = read_prompts(request.prompts, lambda: Text(request.graphs, config.bos))
    require_vocabulary(rows, config.vocab, of=f" of {request.prompts}")
    if request.seed is not None:
        random.Random(request.seed).shuffle(rows)
    return [row[: min(request.max_tokens, config.positions)] for row in rows if row]


def _digest(request: CalibrationRequest, ranks: dict[int, GraphsRank]) -> str:
    """Of all that decides the table; ``strict`` decides only whether it is given out."""
    asked = {name: str(getattr(request, name)) for name in ("samples", "max_tokens", "batch", "method", "min_tokens_per_expert", "seed")}
    graphs = [files.sha256_file(records.rank_manifest(request.graphs, rank)) for rank in sorted(ranks)]
    return files.digest({"moetrt": __version__, "graphs": graphs, "prompts": files.sha256_file(request.prompts)} | asked)


def _lacking(request: CalibrationRequest, collection: Collection) -> bool:
    return any(len(seen.tokens) and seen.tokens.min() < request.min_tokens_per_expert for _, seen in collection.segments())


def _table(request: CalibrationRequest, record: GraphsRank, collection: Collection, rows: list[list[int]], digest: str) -> Table:
    linears: dict[str, Range] = {}
    experts: dict[str, ExpertRanges] = {}
    for name, seen in collection.segments():
        linears |= {weight: _range(histogram, seen.channels.get(weight, ()), request.method) for weight, histogram in seen.linears.items()}
        if len(seen.tokens):
            experts[f"{name}.experts.down"] = expert_ranges(seen, request.method, request.min_tokens_per_expert)
    return Table(
        source=record.source,
        config_hash=files.digest(record.config),
        precision=record.precision,
        method=request.method,
        prompts=files.sha256_file(request.prompts),
        samples=len(rows),
        topped_up=max(0, len(rows) - request.samples),
        tokens=sum(map(len, rows)),
        min_tokens_per_expert=request.min_tokens_per_expert,
        linears=linears,
        experts=experts,
        request=digest,
        tools={"moetrt": __version__, "onnxruntime": importlib.metadata.version("onnxruntime")},
    )


def _range(histogram: Histogram, channels: object, method: str) -> Range:
    (counts, top), chosen = histogram.coarse(COARSE), amax(histogram, method)
    numbers = tuple(float(f"{value:.7g}") for value in channels)
    return Range(chosen, float(histogram.maximum), int(histogram.total), relative_error(histogram, chosen), counts, top, numbers)


def expert_ranges(seen: Seen, method: str, least: int) -> ExpertRanges:
    """Each expert's range; the pooled one, with the reason, for experts that saw fewer than ``least`` tokens."""
    everything = Histogram()
    for one in seen.experts:
        everything.merge(one)
    pooled = amax(everything, method)
    reasons = {
        str(expert): "no token was routed to it" if count == 0 else f"only {count} tokens were routed to it, fewer than {least}"
        for expert, count in enumerate(seen.tokens.tolist())
        if count < max(least, 1)
    }
    chosen = tuple(pooled if str(expert) in reasons else amax(one, method) for expert, one in enumerate(seen.experts))
    errors = tuple(relative_error(one, limit) for one, limit in zip(seen.experts, chosen, strict=True))
    return ExpertRanges(tuple(seen.tokens.tolist()), chosen, tuple(float(one.maximum) for one in seen.experts), errors, pooled, reasons)


def _require_covered(request: CalibrationRequest, table: Table) -> None:
    fallen = fallbacks(table)
    if request.strict and fallen:
        name, why = next(iter(fallen.items()))
        raise RunError(
            f"{len(fallen)} experts lack tokens; {name}: {why} ({table.samples} prompts, {table.tokens} tokens).",
            hint="Give more prompts, lower --min-tokens-per-expert, or leave --strict out: they then get their layer's pooled range, at once.",
        )
