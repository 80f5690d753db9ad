"""Portable graphs become one backend's engines, rank by rank; a rank that is finished is left alone."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from exporter import __version__
from exporter.errors import BuildError, UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import EngineRank, FileStamp, GraphsRank
from exporter.progress import RankProgress

from . import processes
from .backends import find_backend, load_backend
from .backends.contract import Backend, RankBuild, RankEngines
from .runtime.joined import write_joined

log = logging.getLogger(__name__)
USUAL_CONTEXT = 4096
"""Cache positions where none are asked for and the model has as many."""


@dataclass(frozen=True)
class EngineRequest:
    """What ``moetrt build`` was asked for."""

    graphs: Path
    backend: str
    output: Path
    max_context: int | None = None
    """Cache positions a row; the model's positions, at most 4096, where none are given."""
    max_batch: int = 4
    rank: int | None = None
    """One rank alone; None for all."""
    compute_capabilities: tuple[str, ...] = ()
    fast: bool = False
    """Take kernels that round activations in their own way, where the backend has them."""
    plugins: Path | None = None
    """A library of our own kernels: TensorRT's plugins, or ONNX Runtime's ops; it is put beside the engines."""
    segments: bool = False
    """A plan for each segment, not for each rank, where the backend can have whole ranks."""
    jobs: int = 1
    """Ranks at a time, each in a process of its own; 1 builds in this process. The engines are the same."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--max-context", self.max_context), ("--max-batch", self.max_batch), ("--jobs", self.jobs)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more.")


@dataclass(frozen=True)
class EngineReceipt:
    """What was done, or would be."""

    output: Path
    backend: str
    built: tuple[int, ...]
    kept: tuple[int, ...]
    """Ranks that were finished already."""
    bytes: int
    """Size of the files built now; weights that are shared with the graphs count."""
    dry_run: bool = False

    def summary(self) -> str:
        kept = f", {len(self.kept)} kept" if self.kept else ""
        if self.dry_run:
            return f"{self.output}: would build rank(s) {list(self.built)} for {self.backend}{kept}"
        return f"{self.output}: {len(self.built)} rank(s) built for {self.backend}{kept}, {self.bytes / 1e6:.1f} MB"


def silent(rank: int, what: str, part: float, peak: int | None = None) -> None:
    """No progress."""


def build_engines(request: EngineRequest, progress: RankProgress = silent) -> EngineReceipt:
    """Build the ranks that were asked for.

    Several at a time start processes, so a script that calls this with ``jobs`` has to be guarded by ``if __name__ == "__main__"``.

    :raises MoetrtError: the graphs, the backend or the folder do not allow it; nothing half-built is left.
    """
    backend = load_backend(request.backend)
    if request.compute_capabilities and not backend.takes_compute_capabilities:
        raise UsageError(f"the backend {request.backend} has no use for --compute-capability.", hint="It is for tensorrt and tensorrt-rtx.")
    if request.fast and not backend.substitutes:
        raise UsageError(f"the backend {request.backend} has no kernels that --fast would take.", hint="It is for ort.")
    if request.segments and not backend.takes_segments:
        raise UsageError(f"the backend {request.backend} has no use for --segments.", hint="It is for tensorrt and tensorrt-rtx; ort's engines are cut wherever it takes that.")
    if request.plugins and not backend.with_plugins:
        raise UsageError(f"the backend {request.backend} has no use for --plugins.", hint="They are for ort, tensorrt and tensorrt-rtx.")
    ranks = records.read_wanted(GraphsRank, request.graphs, request.rank)
    for record in ranks.values():
        _require_buildable(request, backend, record)
    _require_folder(request, next(iter(ranks.values())))
    wanted = {rank: _manifest_digest(request, backend, record) for rank, record in ranks.items()}
    todo = [rank for rank in ranks if not records.finished(EngineRank, records.rank_manifest(request.output, rank), wanted[rank])]
    kept = tuple(rank for rank in ranks if rank not in todo)
    if request.dry_run:
        return EngineReceipt(request.output, request.backend, tuple(todo), kept, 0, dry_run=True)
    sizes = _build_ranks(request, {rank: (ranks[rank], wanted[rank]) for rank in todo}, progress)
    shared = records.share_text(request.graphs, request.output) | write_joined(request.output) | _share_library(request)
    records.write_set("engines", EngineRank, request.output, shared)
    return EngineReceipt(request.output, request.backend, tuple(todo), kept, sum(sizes.values()))


def _share_library(request: EngineRequest) -> dict[str, FileStamp]:
    """Put the library of kernels beside the engines that need it."""
    ranks = records.read_ranks(EngineRank, request.output).values()
    if not request.plugins or not any(record.options.get("plugins") for record in ranks):
        return {}
    target = request.output / request.plugins.name
    files.write_bytes(target, request.plugins.read_bytes())
    return {target.name: records.stamp(target)}


def _require_buildable(request: EngineRequest, backend: Backend, record: GraphsRank) -> None:
    folder, able = request.graphs / records.rank_folder(record.rank), backend.capabilities
    if record.weights is None:
        raise BuildError(f"{folder} holds graphs without weights.", hint="Export again without --graphs-only.")
    if record.precision not in able.dtypes:
        raise BuildError(
            f"{able.backend} does not compute in {record.precision}, the precision of {folder}.",
            hint=f"Export with --precision {' or '.join(sorted(able.dtypes))}, or choose another --backend.",
        )
    context = max_context(request, record.config)
    if context > record.config.positions:
        raise BuildError(f"--max-context {context} is beyond the model's {record.config.positions} positions.", hint=f"Choose at most {record.config.positions}.")
    records.check_files(folder, record.files)


def max_context(request: EngineRequest, config: ModelConfig) -> int:
    return request.max_context or min(config.positions, USUAL_CONTEXT)


def _require_folder(request: EngineRequest, record: GraphsRank) -> None:
    """Refuse a folder that is someone else's."""
    output = request.output
    records.require_own_folder(output, "engines", BuildError)
    for there in records.read_ranks(EngineRank, output).values() if output.exists() else ():
        folder = output / records.rank_folder(there.rank)
        if there.backend != request.backend:
            raise BuildError(f"{folder} holds engines of the backend {there.backend}, not {request.backend}.", hint="One folder is for one backend: choose another --output.")
        if there.plan_hash != record.plan_hash:
            mine, other = (f"tensor {plan.tensor}, pipeline {plan.pipeline}" for plan in (record.plan, there.plan))
            told = "of another model" if mine == other else f"of another plan or model ({other}; the graphs have {mine})"
            raise BuildError(f"{folder} holds engines {told}.", hint="Choose another --output, or remove the folder.")


def _manifest_digest(request: EngineRequest, backend: Backend, record: GraphsRank) -> str:
    """Digest of all that decides a rank's engines."""
    asked = {
        "backend": request.backend,
        "graphs": _graphs_hash(request, record.rank),
        "max_context": max_context(request, record.config),
        "max_batch": request.max_batch,
        "compute_capabilities": request.compute_capabilities,
        "fast": request.fast,
    } | ({"plugins": files.sha256_file(request.plugins)} if request.plugins else {}) | ({"segments": True} if request.segments else {})
    return files.digest({"moetrt": __version__, "tools": backend.tools()} | asked)


def _graphs_hash(request: EngineRequest, rank: int) -> str:
    return files.sha256_file(records.rank_manifest(request.graphs, rank))


def _build_ranks(request: EngineRequest, todo: dict[int, tuple[GraphsRank, str]], progress: RankProgress) -> dict[int, int]:
    """:returns: rank → bytes of its files."""
    if min(request.jobs, len(todo)) < 2:
        return {rank: build_rank(request, *job, progress) for rank, job in todo.items()}
    for rank in todo:  # so that lines stand in the order of ranks, whichever is heard of first
        progress(rank, "waiting", 0.0)
    try:
        return processes.side_by_side(build_rank, {rank: (request, *job) for rank, job in todo.items()}, request.jobs, progress)
    finally:  # a process that was ended could not tidy up
        for rank in todo:
            files.drop_partial(request.output / records.rank_folder(rank))


def build_rank(request: EngineRequest, record: GraphsRank, digest: str, progress: RankProgress) -> int:
    """One rank, whole or not at all. :returns: bytes of its files."""
    backend, began = find_backend(request.backend), time.perf_counter()
    with files.whole_folder(request.output / records.rank_folder(record.rank)) as folder:
        job = RankBuild(
            source=request.graphs / records.rank_folder(record.rank),
            record=record,
            folder=folder,
            max_context=max_context(request, record.config),
            max_batch=request.max_batch,
            compute_capabilities=request.compute_capabilities,
            fast=request.fast,
            segments=request.segments,
            plugins=request.plugins,
            progress=lambda what, part: progress(record.rank, what, part),
        )
        made = backend.build(job)
        stamps = {path.name: made.stamps.get(path.name) or records.stamp(path) for path in sorted(folder.iterdir())}
        files.write_record(folder / records.MANIFEST, _manifest(request, backend, record, made, stamps, digest))
    progress(record.rank, "done", 1.0)
    size = sum(stamp.bytes for stamp in stamps.values())
    log.info("rank %d: built for %s in %.1f s, %d files of %.1f MB", record.rank, request.backend, time.perf_counter() - began, len(stamps), size / 1e6)
    return size


def _manifest(
    request: EngineRequest, backend: Backend, record: GraphsRank, made: RankEngines, stamps: dict[str, FileStamp], digest: str
) -> EngineRank:
    return EngineRank(
        backend=request.backend,
        rank=record.rank,
        plan=record.plan,
        plan_hash=record.plan_hash,
        config=record.config,
        shard=record.shard,
        source=record.source,
        precision=record.precision,
        attention=record.attention,
        graphs=_graphs_hash(request, record.rank),
        max_context=max_context(request, record.config),
        max_batch=request.max_batch,
        assembly=made.assembly,
        options=made.options,
        lowerings=made.lowerings,
        refusals=made.refusals,
        files=stamps,
        request=digest,
        tools={"moetrt": __version__} | backend.tools(),
        quantization=record.quantization,
    )
