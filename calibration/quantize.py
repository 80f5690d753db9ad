"""Float graphs and a table become INT8 graphs of the same names, rank by rank; a finished rank is left alone."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.checkpoint.writer import Entry, bytes_of, layout_of, write_entries
from exporter.errors import ExportError, LoadError, UsageError
from exporter.models.weights import DTYPES
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import FileStamp, GraphsRank, Quantization

from .calibrate import fallbacks, require_float
from .insert import WEIGHTS, Insertion
from .schemes import STATIC, QuantScheme, find_scheme, input_mode, segment_of
from .smooth import factors_of_weights, smoothed_table, smoothing_factors
from .table import LEVELS, Table, read_table
from .weights import Error, Weights, array_entry, float_entry, quantised_entries

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizeRequest:
    """What ``moetrt quantize`` was asked for."""

    graphs: Path
    output: Path
    table: Path | None = None
    scheme: str = "int8"
    smooth: float | None = None
    """Exponent of SmoothQuant, 0 to 1."""
    head: str = "auto"
    """``int8``, ``float``, or what the scheme does."""
    rank: int | None = None
    float_segments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        scheme = find_scheme(self.scheme)
        if self.table is None and (scheme.needs_table or self.smooth is not None):
            raise UsageError(f"the scheme {self.scheme} needs --table.", hint="Make one with `moetrt calibrate GRAPHS --prompts FILE --output FILE`.")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"--smooth is {self.smooth}; it must be from 0 (weights keep their spread) to 1.", hint="0.5 is usual.")

    @property
    def quantises_head(self) -> bool:
        return find_scheme(self.scheme).head if self.head == "auto" else self.head == "int8"


@dataclass(frozen=True)
class Decision:
    """All that quantising depends on, the same for every rank."""

    request: QuantizeRequest
    scheme: QuantScheme
    table: Table | None
    """After smoothing."""
    factors: "dict[str, np.ndarray]"
    """Segment → smoothing factors."""


@dataclass(frozen=True)
class Job:
    """What has to be done: the decision before the act."""

    request: QuantizeRequest
    ranks: dict[int, GraphsRank]
    """Of the float graphs: those to be quantised, and all where smoothing has to see all."""
    table: Table | None
    table_hash: str | None
    sensitivity: dict[str, float]
    todo: dict[int, str]
    """Rank to be made → digest of all that decides it."""
    kept: tuple[int, ...]
    """Ranks that are finished already."""

    @property
    def first(self) -> GraphsRank:
        return next(iter(self.ranks.values()))

    @property
    def bytes(self) -> int:
        """Float weights that are to be read."""
        return sum(self.ranks[rank].files[self.ranks[rank].weights].bytes for rank in self.todo)

    @cached_property
    def decision(self) -> Decision:
        """Smooths, where that was asked for: reads all weights, once."""
        request, table, factors = self.request, self.table, {}
        if request.smooth is not None:
            factors = smoothing_factors(request.graphs, self.ranks, table, request.smooth, frozenset(request.float_segments))
            table = smoothed_table(table, factors)
        return Decision(request, find_scheme(request.scheme), table, factors)

    def summary(self) -> str:
        kept = f", {len(self.kept)} kept" if self.kept else ""
        return f"{self.request.output}: would quantise rank(s) {list(self.todo)} as {self.request.scheme}{kept}"

    def report(self) -> dict[str, Any]:
        """What ``moetrt quantize --dry-run --json`` prints."""
        return {"output": str(self.request.output), "scheme": self.request.scheme, "ranks": list(self.todo), "kept": list(self.kept), "float_bytes": self.bytes}


@dataclass(frozen=True)
class Quantized:
    """What was done."""

    job: Job
    float_bytes: int
    """Weights files of all ranks, before."""
    quantized_bytes: int
    """… and after."""
    errors: dict[str, tuple[float, int, int]]
    """Weight → relative L2 error of quantising it, and its bytes before and after, over the ranks made now."""

    def summary(self) -> str:
        kept, request = f", {len(self.job.kept)} kept" if self.job.kept else "", self.job.request
        return f"{request.output}: {len(self.job.todo)} rank(s) as {request.scheme}{kept}, weights {self.float_bytes / 1e6:.1f} → {self.quantized_bytes / 1e6:.1f} MB"


def quantize(request: QuantizeRequest, sensitivity: dict[str, float] | None = None) -> Quantized:
    """Plan and perform.

    :param sensitivity: what was measured of each segment, for the record.
    """
    return perform(plan_quantization(request, sensitivity))


def perform(job: Job, advance: Callable[[int], None] = lambda count: None) -> Quantized:
    """Write the quantised graphs.

    :param advance: called with each number of bytes of float weights that were dealt with.
    :raises MoetrtError: the table lacks a range, or a matrix does not take the scheme; nothing half-written is left.
    """
    request, errors = job.request, {}
    for rank in job.todo:
        _quantize_rank(job, rank, advance, errors)
    if request.rank is None:
        records.drop_other_ranks(request.output, job.first.plan)
    records.write_set("graphs", GraphsRank, request.output, records.share_text(request.graphs, request.output))
    after = records.read_ranks(GraphsRank, request.output)
    sizes = (sum(held[rank].files[held[rank].weights].bytes for rank in (*job.todo, *job.kept)) for held in (job.ranks, after))
    found = {name: (error.relative, before, now) for name, (error, before, now) in errors.items()}
    return Quantized(job, *sizes, found)


def plan_quantization(request: QuantizeRequest, sensitivity: dict[str, float] | None = None) -> Job:
    """Hold graphs, table and folder against each other, and find the ranks that have to be made.

    :raises MoetrtError: they do not allow it, or the table is of another checkpoint.
    """
    ranks = require_float(request.graphs, request.rank if request.smooth is None else None)
    table = read_table(request.table) if request.table else None
    if table:
        _require_own(table, request.table, next(iter(ranks.values())))
    wanted = [rank for rank in ranks if request.rank in (None, rank)]
    if not wanted:
        raise LoadError(f"{request.graphs} has no rank {request.rank}.", hint=f"It has {sorted(ranks)}.")
    if request.output.resolve() == request.graphs.resolve():
        raise ExportError(f"{request.output} is the folder of the float graphs.", hint="Choose another --output.")
    records.require_own_folder(request.output, "graphs", ExportError)
    table_hash = files.sha256_file(request.table) if request.table else None
    sensitivity = sensitivity or {}
    made = records.shared_by_ranks(ranks[wanted[0]]) | {"quantisation": records.calibration_hash(request.scheme, table_hash, request.smooth, request.float_segments)}
    records.require_company(GraphsRank, request.output, request.rank, made, ExportError)
    digests = {rank: _digest(request, table_hash, sensitivity, ranks[rank]) for rank in wanted}
    kept = tuple(rank for rank in wanted if records.finished(GraphsRank, records.rank_manifest(request.output, rank), digests[rank]))
    return Job(request, ranks, table, table_hash, sensitivity, {rank: digests[rank] for rank in wanted if rank not in kept}, kept)


def _require_own(table: Table, path: Path, record: GraphsRank) -> None:
    if table.source.fingerprint != record.source.fingerprint or table.config_hash != files.digest(record.config):
        raise LoadError(
            f"{path} was calibrated on {table.source.name} ({(table.source.fingerprint or '')[:12]}), the graphs are of {record.source.name} ({(record.source.fingerprint or '')[:12]}).",
            hint="A table serves every plan of one checkpoint, and no other checkpoint: calibrate these graphs.",
        )


def _digest(request: QuantizeRequest, table_hash: str | None, sensitivity: dict[str, float], record: GraphsRank) -> str:
    asked = {"scheme": request.scheme, "smooth": request.smooth, "head": request.quantises_head, "float": request.float_segments}
    return files.digest({"moetrt": __version__, "graphs": record.request, "files": record.files, "sensitivity": sensitivity, "table": table_hash} | asked)


def _quantize_rank(job: Job, rank: int, advance: Callable[[int], None], errors: dict[str, list]) -> None:
    request, decision, record = job.request, job.decision, job.ranks[rank]
    source, began = request.graphs / records.rank_folder(record.rank), time.perf_counter()
    weights = Weights(source / record.weights)
    weights.factors = factors_of_weights(decision.factors, list(weights.infos))
    modes = {name: mode for name in weights.infos if segment_of(name) not in request.float_segments and (mode := input_mode(decision.scheme, name, request.quantises_head))}
    scales = {name: _input_scale(decision, record, name) for name, mode in modes.items() if mode == STATIC}
    entries = _entries(weights, modes, scales, DTYPES[record.precision], decision.scheme, errors)
    placed = layout_of(entries)
    insertion = Insertion(decision.scheme, modes, scales, placed, _dtype(record.precision))
    with files.whole_folder(request.output / records.rank_folder(record.rank)) as folder:
        stamps = {file: _write_graph(insertion, source / file, folder / file) for file in {**record.segments.graphs, **record.whole.graphs}.values()}
        stamps[WEIGHTS] = write_entries(folder / WEIGHTS, entries, placed, advance)
        files.write_record(folder / records.MANIFEST, replace(record, quantization=_quantization(job, modes), weights=WEIGHTS, files=stamps, request=job.todo[rank]))
    log.info("rank %d: %d of %d tensors quantised as %s in %.1f s", rank, len(modes), len(weights.infos), request.scheme, time.perf_counter() - began)


def _dtype(precision: str) -> "np.dtype":
    import ml_dtypes
    import numpy as np

    return np.dtype({"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision])


def _input_scale(decision: Decision, record: GraphsRank, weight: str) -> "np.ndarray":
    """amax / 127: a scalar, or for experts' ``down`` *shape* ``(local experts, 1, 1)``.

    :raises LoadError: the table has no range for it, or a range of nothing but zeros.
    """
    import numpy as np

    if weight.endswith("experts.down"):
        if weight not in decision.table.experts:
            raise LoadError(f"{decision.request.table} has no ranges for {weight}.", hint="Calibrate these graphs.")
        found = [decision.table.experts[weight].amax[expert] for expert in record.shard.experts]
        values = np.array(found, np.float32).reshape(-1, 1, 1)
    else:
        if weight not in decision.table.linears:
            raise LoadError(f"{decision.request.table} has no range for the input of {weight}.", hint="Calibrate these graphs.")
        values = np.array(decision.table.linears[weight].amax, np.float32)
    dtype = _dtype(record.precision)
    scales = np.asarray(values / np.float32(LEVELS)).astype(dtype)
    if not (scales.astype(np.float32) > 0).all():
        raise LoadError(f"the range of the input of {weight} is zero: no prompt ever made it anything else.", hint="Calibrate with prompts that reach it, or keep it float.")
    return scales


def _entries(
    weights: Weights, modes: dict[str, str], scales: "dict[str, np.ndarray]", dtype: str, scheme: QuantScheme, errors: dict[str, list]
) -> list[Entry]:
    entries: list[Entry] = []
    for name, info in weights.infos.items():
        if name not in modes:
            entries.append(float_entry(weights, name))
            continue
        kept = errors.setdefault(name, [Error(), 0, 0])
        made = list(quantised_entries(weights, name, dtype, scheme.of(name), kept[0]))
        if name in scales and scales[name].ndim == 3:
            made.append(array_entry(f"{name}.input_scale", dtype, scales[name]))
        kept[1] += info.bytes
        kept[2] += sum(map(bytes_of, made))
        entries += made
    return entries


def _write_graph(insertion: Insertion, source: Path, target: Path) -> FileStamp:
    import hashlib

    data = insertion.rewrite(load_graph(source)).SerializeToString(deterministic=True)
    files.write_bytes(target, data)
    return FileStamp(len(data), hashlib.sha256(data).hexdigest())


def _quantization(job: Job, modes: dict[str, str]) -> Quantization:
    request = job.request
    fallen = fallbacks(job.table) if job.table and STATIC in modes.values() else {}
    return Quantization(
        scheme=request.scheme,
        table=job.table_hash,
        smooth=request.smooth,
        float_segments=request.float_segments,
        weights=modes,
        fallbacks={name: why for name, why in fallen.items() if modes.get(name.partition("[")[0]) == STATIC},
        sensitivity=job.sensitivity,
        block=find_scheme(request.scheme).block,
    )
