"""What `moetrt plan` says: who owns what, in bytes, and whether it fits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import sizes
from .errors import CheckpointError
from .models import FAMILIES, Model, read_model
from .models.weights import file_bytes
from .plan import fit, legality
from .plan.config import ModelConfig
from .plan.fit import Demand, Device
from .plan.legality import Problem
from .plan.parallel import Plan, Range, Shard, shards

ROWS = 16
"""Ranks that the table shows before it leaves some out."""


@dataclass(frozen=True)
class PlanRequest:
    """What `moetrt plan` was asked."""

    model: Path
    plan: Plan
    precision: str | None
    """None for what the checkpoint stores."""
    device_memory: float | None
    """GiB of one rank's device."""
    context: int
    """Tokens cached at once."""


@dataclass(frozen=True)
class RankReport:
    """One rank's share."""

    shard: Shard
    weight_bytes: int
    file_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class PlanReport:
    """The answer to a :class:`PlanRequest`."""

    request: PlanRequest
    config: ModelConfig
    precision: str
    ranks: tuple[RankReport, ...]
    total_weight_bytes: int
    """The whole model, each tensor once."""
    fits: bool | None
    """None where no device memory was named."""
    suggestion: int | None
    """The smallest rank count that is legal and fits; None where none does or no memory was named."""
    problems: tuple[Problem, ...]

    @property
    def shard_bytes(self) -> int:
        """What `convert` writes."""
        return sum(rank.weight_bytes for rank in self.ranks)

    @property
    def graph_bytes(self) -> int:
        """What `export` writes: the weights files; graphs take some MB beside them."""
        return sum(rank.file_bytes for rank in self.ranks)

    @property
    def engine_bytes(self) -> int:
        """What `build` may write: a backend that embeds weights copies them once."""
        return self.graph_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "ranks": [_rank_json(rank) for rank in self.ranks],
            "total_weight_bytes": self.total_weight_bytes,
            "disk_bytes": self.graph_bytes + self.engine_bytes,
            "fits": self.fits,
            "suggestion": self.suggestion,
            "legal": not self.problems,
            "problems": [str(problem) for problem in self.problems],
        }

    def text(self) -> str:
        return "\n".join([*_head(self), "", *_table(self.ranks), "", *_sums(self), *_memory(self)])


def plan_model(request: PlanRequest) -> PlanReport:
    """Read config.json, and the safetensors headers where there are any; compute the rest."""
    model = read_model(request.model)
    precision = request.precision or model.config.stored
    ranks = _rank_reports(model.config, request.plan, precision)
    found = (*legality.problems(model.config, request.plan, precision), *_checkpoint_problems(model))
    device = Device(int(request.device_memory * fit.GIB)) if request.device_memory else None
    return PlanReport(
        request,
        model.config,
        precision,
        ranks,
        sizes.model_bytes(FAMILIES[model.config.family].KEYS, model.config, precision),
        device and fit.fits([_demand(rank) for rank in ranks], device, request.context),
        device and _suggestion(model.config, request, precision, device),
        found,
    )


def _checkpoint_problems(model: Model) -> tuple[Problem, ...]:
    if not any(model.folder.glob("*.safetensors*")):
        return ()
    from .checkpoint.reader import Checkpoint

    family = FAMILIES[model.config.family]
    try:
        return Checkpoint(model.folder, model.config).problems(family.KEYS, family.UNUSED)
    except CheckpointError as error:
        return (Problem("checkpoint", error.message, error.hint or ""),)


def _rank_reports(config: ModelConfig, plan: Plan, precision: str) -> tuple[RankReport, ...]:
    keys, known, reports = FAMILIES[config.family].KEYS, {}, []
    for shard in shards(config, plan):
        weights = sizes.rank_bytes(keys, config, shard, precision)
        # Names do not know ranks: equal shares of equal layers make equal files, and a header takes a tenth of a second.
        shape = (shard.stage, weights, len(shard.heads), len(shard.experts), len(shard.vocab))
        if shape not in known:
            known[shape] = file_bytes(config, shard, _exported(precision))
        reports.append(RankReport(shard, weights, known[shape], fit.cache_bytes_per_token(config, shard, precision)))
    return tuple(reports)


def _exported(precision: str) -> str:
    """`export` dequantises FP8 to bf16."""
    return "bf16" if precision == "fp8" else precision


def _demand(rank: RankReport) -> Demand:
    return Demand(rank.weight_bytes, rank.kv_bytes_per_token)


def _suggestion(config: ModelConfig, request: PlanRequest, precision: str, device: Device) -> int | None:
    keys = FAMILIES[config.family].KEYS

    def accepts(plan: Plan) -> bool:
        parts = shards(config, plan)[:: plan.tensor]
        demands = [Demand(sizes.rank_bytes(keys, config, part, precision), fit.cache_bytes_per_token(config, part, precision)) for part in parts]
        return fit.fits(demands, device, request.context)

    return fit.suggest(config, request.plan.pipeline, precision, accepts)


def _rank_json(rank: RankReport) -> dict[str, Any]:
    shard = rank.shard
    ranges = {name: [part.start, part.stop] for name, part in _ranges(shard)}
    counts = {"weight_bytes": rank.weight_bytes, "file_bytes": rank.file_bytes, "kv_bytes_per_token": rank.kv_bytes_per_token}
    return {"rank": shard.rank, "stage": shard.stage} | ranges | counts


def _ranges(shard: Shard) -> tuple[tuple[str, Range], ...]:
    return ("layers", shard.layers), ("heads", shard.heads), ("experts", shard.experts), ("vocab", shard.vocab)


def _head(report: PlanReport) -> Iterator[str]:
    config, plan = report.config, report.request.plan
    yield f"{config.family}: {config.layers} layers ({min(config.dense_layers, config.layers)} dense), {config.heads} heads, {config.experts} experts, stored as {config.stored}"
    yield f"{plan.tensor} tensor × {plan.pipeline} pipeline = {plan.ranks} ranks at {report.precision}; ranges run up to, not including, their end"


def _table(ranks: tuple[RankReport, ...]) -> Iterator[str]:
    yield f"{'rank':>4} {'stage':>5} {'layers':>7} {'heads':>9} {'experts':>9} {'vocab':>15} {'weights':>10} {'cache/token':>12}"
    for rank in ranks if len(ranks) <= ROWS else ranks[: ROWS - 1]:
        parts = [f"{part.start}:{part.stop}" for _, part in _ranges(rank.shard)]
        layers, heads, experts, vocab = parts
        yield f"{rank.shard.rank:>4} {rank.shard.stage:>5} {layers:>7} {heads:>9} {experts:>9} {vocab:>15} {amount(rank.weight_bytes):>10} {amount(rank.kv_bytes_per_token):>12}"
    if len(ranks) > ROWS:
        yield f"   … and {len(ranks) - ROWS + 1} more; --json lists all"


def _sums(report: PlanReport) -> Iterator[str]:
    yield f"model    {amount(report.total_weight_bytes)} of weights, each tensor once ({report.total_weight_bytes:,} bytes)"
    yield f"disk     convert {amount(report.shard_bytes)}, export {amount(report.graph_bytes)} at {_exported(report.precision)}, build up to {amount(report.engine_bytes)}"


def _memory(report: PlanReport) -> Iterator[str]:
    context, memory = report.request.context, report.request.device_memory
    largest = max(_demand(rank).total(context) for rank in report.ranks)
    yield f"memory   {amount(largest)} on the fullest rank: weights, and cache for {context:,} tokens"
    if report.precision == "fp8":
        yield "         in FP8, as stored; engines have it as bf16 or larger, or quantised: --precision bf16, --precision int8"
    if memory is None:
        return
    usable = Device(int(memory * fit.GIB)).usable
    verdict = "fits" if report.fits else "does not fit"
    yield f"         {verdict} {amount(usable)}, which is {memory:g} GiB less a reserve of {fit.RESERVE:.0%}"
    if report.suggestion is None:
        yield f"suggest  nothing: no legal plan of up to {fit.RANK_COUNTS[-1]} ranks fits; try more --pipeline stages"
    else:
        tensor = report.suggestion // report.request.plan.pipeline
        yield f"suggest  {report.suggestion} ranks: --tensor {tensor} --pipeline {report.request.plan.pipeline}"


def amount(count: int) -> str:
    """Bytes for people: ``40.18 GiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
