"""A checkpoint becomes portable graphs and rank weights: decide for each rank, then perform."""

import hashlib
import importlib.metadata
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..checkpoint.arrange import Source
from ..checkpoint.reader import Checkpoint
from ..errors import ExportError
from ..models import FAMILIES, Model, read_model
from ..models.weights import file_bytes, stored_tensors, weights_layout
from ..plan import files, legality
from ..plan import manifest as records
from ..plan.manifest import Assembly, FileStamp, GraphsRank
from ..plan.manifest import Source as SourceRecord
from ..plan.parallel import Plan, shard
from ..trace import WEIGHTS
from .assemble import WHOLE, RankGraphs, RankJob, assemble, finish
from .weights_file import write_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportRequest:
    """What ``moetrt export`` was asked for."""

    model: Path
    output: Path
    plan: Plan
    precision: str = "fp32"
    attention: str = "absorbed"
    rank: int | None = None
    """One rank alone; None for all."""
    graphs_only: bool = False
    """Graphs without weights: config.json is all that is read."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint, opened and proven whole; or config.json alone."""

    model: Model
    record: SourceRecord
    source: Source | None
    unused: dict[str, str] = field(default_factory=dict)
    """Tensors that no plan uses, each with its reason."""


@dataclass(frozen=True)
class Export:
    """What has to be done: the decision before the act."""

    request: ExportRequest
    origin: Origin
    todo: tuple[int, ...]
    kept: tuple[int, ...]
    """Ranks that are finished already."""
    weight_bytes: int
    """Weights to write, over all of ``todo``, padding included."""
    removed: tuple[Path, ...] = ()
    """Folders of ranks that this plan does not have."""

    def summary(self, done: bool = True) -> str:
        kept = f", {len(self.kept)} kept" if self.kept else ""
        verb = "written" if done else "would be written"
        kept += f", {len(self.removed)} of a wider plan removed" if self.removed else ""
        weights = f", {self.weight_bytes / 1e6:.1f} MB of weights" if self.origin.source else ", no weights"
        left = (f"unused: {count} tensor(s), {because}" for because, count in Counter(self.origin.unused.values()).items())
        return "\n".join([f"{self.request.output}: {len(self.todo)} rank(s) {verb}{kept}{weights}", *left])


def plan_export(request: ExportRequest) -> Export:
    """Read the model, prove it whole, and find the ranks that have to be made.

    :raises MoetrtError: the model, the plan or the folder does not allow it.
    """
    model = read_model(request.model)
    legality.require(model.config, request.plan, request.precision, kept_fp8=False)
    ranks = range(request.plan.ranks) if request.rank is None else (shard(model.config, request.plan, request.rank).rank,)
    origin = _open(model, request.graphs_only)
    records.require_own_folder(request.output, "graphs", ExportError)
    _require_company(request, origin)
    read = origin.source.checkpoint.files if origin.source else ()
    todo = tuple(rank for rank in ranks if not records.finished(GraphsRank, records.rank_manifest(request.output, rank), _digest(request, origin, rank), read))
    sizes = (file_bytes(model.config, shard(model.config, request.plan, rank), request.precision) for rank in todo if origin.source)
    removed = () if request.rank is not None else tuple(records.other_ranks(request.output, request.plan))
    return Export(request, origin, todo, tuple(rank for rank in ranks if rank not in todo), sum(sizes), removed)


def _require_company(request: ExportRequest, origin: Origin) -> None:
    """Refuse what would spoil a set that is there."""
    made = {"plan": records.plan_hash(origin.model.config, request.plan), "precision": request.precision, "attention form": request.attention}
    records.require_company(GraphsRank, request.output, request.rank, made | {"quantisation": None, "checkpoint": origin.record.fingerprint}, ExportError)
    for record in records.read_ranks(GraphsRank, request.output).values() if request.graphs_only else ():
        if record.weights:
            raise ExportError(f"{request.output / records.rank_folder(record.rank)} has weights, which --graphs-only would remove.", hint="Choose another --output.")


def export_model(request: ExportRequest, advance: Callable[[int], None] = lambda count: None) -> Export:
    """Write the graphs that were asked for; ranks that are finished are left alone.

    :param advance: called with each number of weight bytes that were written.
    :raises MoetrtError: as :func:`plan_export`, or the disk does not allow it; nothing half-written is left.
    """
    export = plan_export(request)
    perform(export, advance)
    return export


def perform(export: Export, advance: Callable[[int], None] = lambda count: None) -> None:
    """Carry out what was decided."""
    request = export.request
    for rank in export.todo:
        _export_rank(request, export.origin, rank, advance)
    if request.rank is None:
        records.drop_other_ranks(request.output, request.plan)
    records.write_set("graphs", GraphsRank, request.output, records.share_text(export.origin.model.folder, request.output))


def _open(model: Model, graphs_only: bool) -> Origin:
    if graphs_only:
        return Origin(model, SourceRecord(model.folder.resolve().name, None, 0, 0), None)
    family = FAMILIES[model.config.family]
    checkpoint = Checkpoint(model.folder, model.config)
    unused = checkpoint.coverage(model.config, family.KEYS, family.UNUSED)
    return Origin(model, checkpoint.source(), Source(checkpoint, model.config.fp8_block), unused)


def _export_rank(request: ExportRequest, origin: Origin, rank: int, advance: Callable[[int], None]) -> None:
    config, part = origin.model.config, shard(origin.model.config, request.plan, rank)
    tensors = stored_tensors(config, part, request.precision)
    layout = weights_layout(tensors)
    began = time.perf_counter()
    graphs = assemble(RankJob(config, request.plan, part, request.precision, request.attention, layout))
    log.info("rank %d: %d segments traced and put together in %.1f s", rank, len(graphs.pieces), time.perf_counter() - began)
    with files.whole_folder(request.output / records.rank_folder(rank)) as partial:
        stamps = _write_graphs(partial, graphs, _metadata(request, origin, rank))
        if origin.source:
            stamps[WEIGHTS] = write_weights(partial / WEIGHTS, tensors, layout, origin.source, config, advance)
        files.write_record(partial / records.MANIFEST, _manifest(request, origin, rank, graphs, stamps))
    log.info("rank %d: exported in %.1f s", rank, time.perf_counter() - began)


def _digest(request: ExportRequest, origin: Origin, rank: int) -> str:
    asked = {"plan": request.plan, "rank": rank, "precision": request.precision, "attention": request.attention}
    return files.digest({"moetrt": __version__, "config": origin.model.config, "source": origin.record.fingerprint} | asked)


def _metadata(request: ExportRequest, origin: Origin, rank: int) -> dict[str, str]:
    plan = request.plan
    return {
        "moetrt": __version__,
        "moetrt.rank": str(rank),
        "moetrt.plan": f"tensor={plan.tensor} pipeline={plan.pipeline}",
        "moetrt.precision": request.precision,
        "moetrt.source": f"{origin.record.name} {origin.record.fingerprint or 'config only'}",
    }


def _write_graphs(folder: Path, graphs: RankGraphs, metadata: dict[str, str]) -> dict[str, FileStamp]:
    named = {WHOLE: graphs.whole} | {piece.name: piece.graph for piece in graphs.pieces}
    stamps = {}
    for name, graph in named.items():
        data = finish(graph, metadata).SerializeToString(deterministic=True)
        files.write_bytes(folder / f"{name}.onnx", data)
        stamps[f"{name}.onnx"] = FileStamp(len(data), hashlib.sha256(data).hexdigest())
    return stamps


def _manifest(request: ExportRequest, origin: Origin, rank: int, graphs: RankGraphs, stamps: dict[str, FileStamp]) -> GraphsRank:
    config = origin.model.config
    return GraphsRank(
        rank=rank,
        plan=request.plan,
        plan_hash=records.plan_hash(config, request.plan),
        config=config,
        shard=shard(config, request.plan, rank),
        source=origin.record,
        precision=request.precision,
        attention=request.attention,
        whole=Assembly(graphs.whole_steps, {WHOLE: f"{WHOLE}.onnx"}, {WHOLE: graphs.whole_signature}),
        segments=Assembly(
            graphs.segment_steps,
            {piece.name: f"{piece.name}.onnx" for piece in graphs.pieces},
            {piece.name: piece.signature for piece in graphs.pieces},
        ),
        weights=WEIGHTS if origin.source else None,
        files=stamps,
        request=_digest(request, origin, rank),
        tools=tool_versions("torch", "onnx", "onnxscript"),
    )


def tool_versions(*names: str) -> dict[str, str]:
    """Versions of moetrt and of the libraries that had a hand in an artefact."""
    return {"moetrt": __version__} | {name: importlib.metadata.version(name) for name in names}
