"""A checkpoint becomes portable graphs and rank weights: decide for each rank, then perform."""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..checkpoint.arrange import Source
from ..checkpoint.reader import Checkpoint
from ..errors import ExportError, LoadError
from ..models import FAMILIES, Model, read_model
from ..models.weights import stored_tensors, weights_layout
from ..plan import files, legality
from ..plan import manifest as records
from ..plan.manifest import Assembly, FileStamp, GraphsRank
from ..plan.manifest import Source as SourceRecord
from ..plan.parallel import Plan, shard
from ..trace import WEIGHTS
from .assemble import WHOLE, Place, RankGraphs, RankJob, assemble, finish

TOKENIZER = "tokenizer.json"


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
class ExportReceipt:
    """What was done."""

    output: Path
    written: tuple[int, ...]
    kept: tuple[int, ...]
    """Ranks that were finished already."""
    bytes: int

    def summary(self) -> str:
        kept = f", {len(self.kept)} kept" if self.kept else ""
        return f"{self.output}: {len(self.written)} rank(s) written{kept}, {self.bytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Origin:
    """The checkpoint, opened and proven whole; or config.json alone."""

    model: Model
    record: SourceRecord
    source: Source | None


def export_model(request: ExportRequest, progress: Callable[[int, int, int], None] = lambda rank, done, total: None) -> ExportReceipt:
    """Write the graphs that were asked for; ranks that are finished are left alone.

    :param progress: called with a rank, its weight bytes written so far and in all.
    :raises MoetrtError: the model, the plan or the folder does not allow it; nothing half-written is left.
    """
    model = read_model(request.model)
    legality.require(model.config, request.plan, request.precision)
    origin = _open(model, request.graphs_only)
    _require_folder(request.output)
    ranks = range(request.plan.ranks) if request.rank is None else (shard(model.config, request.plan, request.rank).rank,)
    written, kept, total = [], [], 0
    for rank in ranks:
        done = _export_rank(request, origin, rank, progress)
        (written if done else kept).append(rank)
        total += done
    if request.rank is None:
        _drop_other_plans(request)
    records.write_set("graphs", GraphsRank, request.output, _share_tokenizer(model.folder, request.output))
    return ExportReceipt(request.output, tuple(written), tuple(kept), total)


def _open(model: Model, graphs_only: bool) -> Origin:
    if graphs_only:
        return Origin(model, SourceRecord(model.folder.resolve().name, None, 0, 0), None)
    family = FAMILIES[model.config.family]
    checkpoint = Checkpoint(model.folder, model.config)
    checkpoint.coverage(model.config, family.KEYS, family.UNUSED)
    total = sum(info.bytes for info in checkpoint.headers.values())
    record = SourceRecord(model.folder.resolve().name, checkpoint.fingerprint(), len(checkpoint.headers), total)
    return Origin(model, record, Source(checkpoint, model.config.fp8_block))


def _require_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ExportError(f"{output} is a file.", hint="Give a folder, or a name that does not exist yet, as --output.")
    path = output / records.MANIFEST
    kind = files.read_json(path).get("kind") if path.exists() else "graphs"
    if kind != "graphs":
        raise ExportError(f"{output} holds {kind}, not graphs.", hint="Choose another --output.")


def _export_rank(request: ExportRequest, origin: Origin, rank: int, progress: Callable[[int, int, int], None]) -> int:
    """:returns: bytes written; 0 where the rank was finished already."""
    folder = request.output / records.rank_folder(rank)
    digest = _digest(request, origin, rank)
    if _finished(folder, digest):
        return 0
    config, part = origin.model.config, shard(origin.model.config, request.plan, rank)
    tensors = stored_tensors(config, part, request.precision)
    layout = weights_layout(tensors)
    places = {placed.name: Place(placed.offset, placed.bytes) for placed in layout.tensors}
    graphs = assemble(RankJob(config, request.plan, part, request.precision, request.attention, places))
    with files.whole_folder(folder) as partial:
        stamps = _write_graphs(partial, graphs, _metadata(request, origin, rank))
        if origin.source:
            from .weights_file import write_weights

            total = sum(placed.bytes for placed in layout.tensors)
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress(rank, done, total)

            stamps[WEIGHTS] = write_weights(partial / WEIGHTS, tensors, layout, origin.source, config, advance)
        files.write_record(partial / records.MANIFEST, _manifest(request, origin, rank, graphs, stamps, digest))
    return sum(stamp.bytes for stamp in stamps.values())


def _digest(request: ExportRequest, origin: Origin, rank: int) -> str:
    asked = {"plan": request.plan, "rank": rank, "precision": request.precision, "attention": request.attention}
    return files.digest({"moetrt": __version__, "config": origin.model.config, "source": origin.record.fingerprint} | asked)


def _finished(folder: Path, digest: str) -> bool:
    path = folder / records.MANIFEST
    if not path.exists():
        return False
    try:
        record = files.read_record(GraphsRank, path)
        records.check_files(folder, record.files)
    except LoadError:
        return False
    return record.request == digest


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


def _manifest(request: ExportRequest, origin: Origin, rank: int, graphs: RankGraphs, stamps: dict[str, FileStamp], digest: str) -> GraphsRank:
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
        request=digest,
        tools=tool_versions("torch", "onnx", "onnxscript"),
    )


def tool_versions(*names: str) -> dict[str, str]:
    """Versions of moetrt and of the libraries that had a hand in an artefact."""
    return {"moetrt": __version__} | {name: importlib.metadata.version(name) for name in names}


def _drop_other_plans(request: ExportRequest) -> None:
    """After all ranks of a plan were written, ranks left there by a wider plan belong to no set."""
    for path in request.output.glob(f"rank-*/{records.MANIFEST}"):
        if path.parent.name not in {records.rank_folder(rank) for rank in range(request.plan.ranks)}:
            shutil.rmtree(path.parent)


def _share_tokenizer(model: Path, output: Path) -> dict[str, FileStamp]:
    if not (model / TOKENIZER).is_file():
        return {}
    files.write_bytes(output / TOKENIZER, (model / TOKENIZER).read_bytes())
    return {TOKENIZER: records.stamp(output / TOKENIZER)}
