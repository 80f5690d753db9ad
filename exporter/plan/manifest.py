"""The records written beside the artefacts: docs/formats.md is their law, this module their types."""

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import LoadError, MoetrtError
from . import files
from .config import ModelConfig
from .parallel import Plan, Shard
from .schedule import Send, Step
from .signature import Signature

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
OURS = (".onnx", ".safetensors", ".engine", ".json", ".partial")
"""What the names of files end in that lie in the folder of a rank."""
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What turns text into token ids and back; copied from folder to folder, where they are there."""


@dataclass(frozen=True)
class FileStamp:
    """What a file was when its manifest was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Which checkpoint was read."""

    name: str
    """The folder's name, for people; never compared."""
    fingerprint: str | None
    """sha256 over every tensor's name, dtype, shape and content sample; None when only config.json was read."""
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Assembly:
    """One way to run a rank: its steps and the graphs that they launch, by name."""

    steps: tuple[Step, ...]
    graphs: dict[str, str]
    """Launch name → file name, beside the manifest."""
    signatures: dict[str, Signature]
    """Launch name → signature."""

    @property
    def sent(self) -> tuple[str, ...]:
        """What the same tensor rank of the next stage gets."""
        return next((step.values for step in self.steps if isinstance(step, Send)), ())


@dataclass(frozen=True)
class Quantization:
    """How float graphs became these."""

    scheme: str
    """``int8``, ``int8-dynamic``, ``int8-weights``."""
    table: str | None
    """sha256 of the calibration table; None where none was needed."""
    smooth: float | None
    """Exponent of SmoothQuant; None where nothing was smoothed."""
    float_segments: tuple[str, ...]
    """Segments that were kept in float."""
    weights: dict[str, str]
    """Quantised weight → what becomes of its input: ``static``, ``token`` or ``float``."""
    fallbacks: dict[str, str]
    """``layers.3.moe_ffn.experts.down[7]`` → why this expert has the pooled range."""
    sensitivity: dict[str, float] = field(default_factory=dict)
    """Segment → mean KL of the logits, in nats, with it alone quantised; empty where it was not measured."""
    block: int | None = None
    """Inputs of a weight that share a scale; None: all inputs that a rank holds of an output channel."""

    @property
    def depends_on_split(self) -> bool:
        """Whether another number of tensor ranks means other numbers: a scale is then of what one rank holds of a channel, or of a token."""
        return self.block is None or "token" in self.weights.values()

    @property
    def rounds_activations(self) -> bool:
        """Whether any weight's input is quantised too."""
        return any(mode != "float" for mode in self.weights.values())


@dataclass(frozen=True)
class GraphsRank:
    """``graphs/rank-NN/manifest.json``: one rank's portable graphs and weights."""

    rank: int
    plan: Plan
    plan_hash: str
    config: ModelConfig
    shard: Shard
    source: Source
    precision: str
    attention: str
    """``absorbed`` or ``naive``."""
    whole: Assembly
    """One graph for the rank, collectives inside."""
    segments: Assembly
    """Graphs cut at the collectives."""
    weights: str | None
    """The weights' file name; None after ``--graphs-only``."""
    files: dict[str, FileStamp]
    request: str
    """Digest of everything that decided the output: an equal request is not carried out twice."""
    tools: dict[str, str]
    quantization: Quantization | None = None
    kind: str = "graphs-rank"
    version: int = 1


@dataclass(frozen=True)
class Lowering:
    """What became of one custom op: the rewrite chosen, and why the ones before it declined."""

    node: str
    op: str
    chosen: str
    refused: dict[str, str] = field(default_factory=dict)
    """Rewrite → reason."""


@dataclass(frozen=True)
class EngineRank:
    """``engines/<backend>/rank-NN/manifest.json``: one rank's engines."""

    backend: str
    rank: int
    plan: Plan
    plan_hash: str
    config: ModelConfig
    shard: Shard
    source: Source
    precision: str
    attention: str
    graphs: str
    """Digest of the graphs' rank manifest: what these engines were built from."""
    max_context: int
    max_batch: int
    assembly: Assembly
    options: dict[str, Any]
    """What the backend's sessions are opened with."""
    lowerings: tuple[Lowering, ...]
    refusals: dict[str, str]
    """What the backend would not do → its reason."""
    files: dict[str, FileStamp]
    request: str
    tools: dict[str, str]
    quantization: Quantization | None = None
    kind: str = "engine-rank"
    version: int = 1


@dataclass(frozen=True)
class RankSet:
    """``manifest.json`` above the ranks: derived from theirs, recomputed by loaders."""

    kind: str
    """``graphs`` or ``engines``."""
    plan: Plan
    plan_hash: str
    fingerprint: str | None
    backend: str | None
    ranks: dict[str, str]
    """Rank folder → sha256 of its manifest."""
    files: dict[str, FileStamp]
    """Files that all ranks share: the tokenizer."""
    complete: bool
    """All ranks of the plan are here."""
    version: int = 1


Rank = TypeVar("Rank", GraphsRank, EngineRank)


def plan_hash(config: ModelConfig, plan: Plan) -> str:
    """Equal for the ranks that may work together."""
    return files.digest({"config": config, "plan": plan})


def rank_folder(rank: int) -> str:
    return f"rank-{rank:02d}"


def rank_manifest(folder: Path, rank: int) -> Path:
    return folder / rank_folder(rank) / MANIFEST


def stamp(path: Path) -> FileStamp:
    return FileStamp(path.stat().st_size, files.sha256_file(path))


def kind_of_set(folder: Path) -> type[GraphsRank] | type[EngineRank] | None:
    """What the ranks in ``folder`` are, by the first of them; None where there is none."""
    first = next(iter(sorted(folder.glob(f"rank-*/{MANIFEST}"))), None)
    return first and (GraphsRank if files.read_json(first).get("kind") == GraphsRank.kind else EngineRank)


def require_set_version(folder: Path) -> None:
    """Refuse a set whose own manifest is of another version than ours; what it says besides is read from the ranks."""
    path = folder / MANIFEST
    data = files.read_json(path) if path.is_file() else None
    if isinstance(data, dict):
        files.require_version(data, RankSet.version, path)


def segments_of(record: GraphsRank | EngineRank) -> Assembly:
    """A rank cut in segments, where its folder has it so; of some engines it is one graph."""
    return record.segments if isinstance(record, GraphsRank) else record.assembly


def read_ranks(kind: type[Rank], folder: Path) -> dict[int, Rank]:
    """The rank manifests that are in ``folder``, by rank; a rank without one is not whole and is left out."""
    found = {}
    for path in sorted(folder.glob(f"rank-*/{MANIFEST}")):
        record = files.read_record(kind, path)
        if path.parent.name != rank_folder(record.rank):
            raise LoadError(f"{path} is of rank {record.rank}, but lies in {path.parent.name}.", hint="Folders of ranks must not be renamed.")
        found[record.rank] = record
    return found


def read_wanted(kind: type[Rank], folder: Path, rank: int | None) -> dict[int, Rank]:
    """One rank, or all, which must then be whole and of one set.

    :raises LoadError: they are not, or the rank is not finished.
    """
    found = read_ranks(kind, folder)
    if rank is None:
        require_set(found, folder)
        return found
    if rank not in found:
        raise LoadError(f"{folder} has no finished {rank_folder(rank)}.", hint=f"Make it with --rank {rank}; finished are {sorted(found) or 'none'}.")
    return {rank: found[rank]}


def require_set(ranks: dict[int, Rank], folder: Path) -> None:
    """Refuse a set that lacks ranks or whose ranks were not made for each other."""
    if not ranks:
        raise LoadError(f"{folder} holds no finished rank (no rank-*/{MANIFEST}).", hint="Give the folder that `moetrt export` or `moetrt build` wrote.")
    require_alike(ranks, folder)
    first = next(iter(ranks.values()))
    missing = sorted(set(range(first.plan.ranks)) - set(ranks))
    if missing:
        raise LoadError(
            f"{folder} has {len(ranks)} of the {first.plan.ranks} ranks of its plan; {rank_folder(missing[0])} is missing or unfinished.",
            hint=f"Make it with --rank {missing[0]}.",
        )


def require_alike(ranks: dict[int, Rank], folder: Path) -> None:
    """Refuse ranks that were not made for each other."""
    first = next(iter(ranks.values()))
    for rank, record in ranks.items():
        for what, mine, other in _differences(shared_by_ranks(record), shared_by_ranks(first)):
            raise LoadError(
                f"{folder / rank_folder(rank)} is of another {what} than {rank_folder(first.rank)}: {short(mine)}, not {short(other)}.",
                hint="Ranks of one set must come from one checkpoint and one plan; make the odd rank again with --rank.",
            )


def shared_by_ranks(record: Rank) -> dict[str, Any]:
    """What the ranks of a set must have in common, by what users call it."""
    made = {"plan": record.plan_hash, "precision": record.precision, "attention form": record.attention}
    if isinstance(record, EngineRank):
        made |= {"backend": record.backend, "--max-context": record.max_context, "--max-batch": record.max_batch}
        made |= {"--fast": "fast" in record.options, "--segments": len(record.assembly.graphs) > 1}
    return made | {"quantisation": calibration_of(record), "checkpoint": record.source.fingerprint}


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    return ((what, value, other[what]) for what, value in one.items() if value != other[what])


def require_company(kind: type[Rank], folder: Path, rank: int | None, wanted: dict[str, Any], error: type[MoetrtError]) -> None:
    """Refuse to put one rank beside others with which it would be no set. All ranks at once take the place of whatever set is there.

    :param wanted: what the rank will have of what :func:`shared_by_ranks` says.
    """
    others = {} if rank is None else {number: record for number, record in read_ranks(kind, folder).items() if number != rank}
    for number, record in others.items():
        for what, mine, theirs in _differences(wanted, shared_by_ranks(record)):
            raise error(
                f"{folder / rank_folder(number)} is of another {what} ({short(theirs)}) than {rank_folder(rank)} would be ({short(mine)}).",
                hint="Choose another --output; without --rank all ranks are made anew.",
            )


def calibration_of(record: Rank) -> str | None:
    """What the ranks of a set must share of their quantisation: all but the names of their own layers."""
    made = record.quantization
    return made and calibration_hash(made.scheme, made.table, made.smooth, made.float_segments)


def calibration_hash(scheme: str, table: str | None, smooth: float | None, float_segments: Iterable[str]) -> str:
    return files.digest([scheme, table, smooth, tuple(float_segments)])


def short(value: Any) -> str:
    """A hash by its first digits; anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def check_files(folder: Path, stamps: dict[str, FileStamp], verify: bool = False) -> None:
    """Refuse files that are absent or whose size (or, with ``verify``, hash) is not the stamped one."""
    for name, wanted in stamps.items():
        path = folder / name
        if not path.is_file():
            raise LoadError(f"{path} is missing.", hint=f"Make {folder} again; its manifest lists the file.")
        size = path.stat().st_size
        if size != wanted.bytes:
            raise LoadError(f"{path} has {size} bytes, its manifest says {wanted.bytes}.", hint=f"The file is damaged or stale; make {folder} again.")
        if verify and files.sha256_file(path) != wanted.sha256:
            raise LoadError(f"{path} does not have the sha256 in its manifest.", hint=f"The file was changed; make {folder} again.")


def finished(kind: type[files.Record], manifest: Path, request: str, read: Iterable[Path] = ()) -> bool:
    """Whether ``manifest`` is of what an equal request made, with every file beside it at its size.

    :param read: files that the request does not tell apart by all that is in them: one that was changed since counts as another.
    """
    if not manifest.exists():
        log.info("%s is not there: to be made", manifest)
        return False
    try:
        record = files.read_record(kind, manifest)
        check_files(manifest.parent, record.files)
    except LoadError as error:
        log.info("made anew: %s", error.message)
        return False
    made = manifest.stat().st_mtime_ns
    if changed := next((path for path in read if path.stat().st_mtime_ns > made), None):
        log.info("%s is older than %s: made anew", manifest, changed)
        return False
    if record.request == request:
        log.info("%s is kept: an equal request made it, and its files have their sizes", manifest)
    else:
        log.info("%s is of another request: inputs, options or versions differ; made anew", manifest)
    return record.request == request


def require_own_folder(output: Path, kind: str, error: type[MoetrtError]) -> None:
    """Refuse an output that is a file, that holds a set of another kind, or files of others where ranks are to lie."""
    if output.exists() and not output.is_dir():
        raise error(f"{output} is a file.", hint="Give a folder, or a name that does not exist yet, as --output.")
    path = output / MANIFEST
    found = files.read_json(path).get("kind") if path.exists() else kind
    if found != kind:
        raise error(f"{output} holds {found}, not {kind}.", hint="Choose another --output.")
    if other := next((path for path in sorted(output.glob("rank-*/*")) if path.suffix not in OURS), None):
        raise error(f"{other} is there and is none of moetrt's files; the folder of a rank is written anew as a whole.", hint="Choose another --output, or move the file away.")


def share_text(source: Path, output: Path) -> dict[str, FileStamp]:
    """Copy the files that all ranks share from a folder into the set's, those that are there."""
    found = [name for name in TEXT_FILES if (source / name).is_file()]
    for name in found:
        files.write_bytes(output / name, (source / name).read_bytes())
    return {name: stamp(output / name) for name in found}


def other_ranks(folder: Path, plan: Plan) -> list[Path]:
    """Folders of ranks that a wider plan left: once all ranks of this one are written they belong to no set."""
    own = {rank_folder(rank) for rank in range(plan.ranks)}
    return sorted(path.parent for path in folder.glob(f"rank-*/{MANIFEST}") if path.parent.name not in own)


def drop_other_ranks(folder: Path, plan: Plan) -> None:
    for path in other_ranks(folder, plan):
        log.info("%s is of a wider plan: removed", path)
        shutil.rmtree(path)


def write_set(kind: str, record: type[Rank], folder: Path, shared: dict[str, FileStamp]) -> RankSet:
    """Write ``folder``'s manifest anew from the rank manifests in it."""
    ranks = read_ranks(record, folder)
    first = next(iter(ranks.values()))
    summary = RankSet(
        kind=kind,
        plan=first.plan,
        plan_hash=first.plan_hash,
        fingerprint=first.source.fingerprint,
        backend=getattr(first, "backend", None),
        ranks={rank_folder(rank): files.sha256_file(rank_manifest(folder, rank)) for rank in sorted(ranks)},
        files=shared,
        complete=set(ranks) == set(range(first.plan.ranks)),
    )
    files.write_record(folder / MANIFEST, summary)
    return summary
