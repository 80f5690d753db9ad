"""Graphs and engines: a set of ranks, or one rank's folder alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.evidence import Table
from exporter.plan.manifest import MANIFEST, EngineRank, GraphsRank, Quantization, RankSet, short

from ..backends import BACKENDS
from .found import Found, Inspection, without_repeats
from .hashes import Claim, claims_of
from .screen import cut, megabytes, spans

RANK_KINDS = {record.kind: record for record in (GraphsRank, EngineRank)}
SET_KINDS = {GraphsRank: "graphs", EngineRank: "engines"}


@dataclass(frozen=True)
class Ranks:
    """The finished ranks at a path."""

    path: Path
    folder: Path
    """What holds the ranks' folders."""
    ranks: dict[int, GraphsRank] | dict[int, EngineRank]
    places: dict[int, Path]
    """Rank → its folder."""
    summary: RankSet | None
    """The set's manifest, where there is one."""
    alone: bool
    """The path is one rank's folder."""

    @property
    def first(self) -> GraphsRank | EngineRank:
        return next(iter(self.ranks.values()))

    @property
    def kind(self) -> str:
        return self.first.kind if self.alone else SET_KINDS[type(self.first)]

    @property
    def missing(self) -> list[int]:
        return [] if self.alone else sorted(set(range(self.first.plan.ranks)) - set(self.ranks))

    @property
    def quantization(self) -> Quantization | None:
        """Of all ranks taken together: each names its own layers alone."""
        made = [record.quantization for record in self.ranks.values() if record.quantization]
        if not made:
            return None
        weights = {name: mode for one in made for name, mode in one.weights.items()}
        return replace(made[0], weights=weights, fallbacks={name: why for one in made for name, why in one.fallbacks.items()})

    def manifest(self, rank: int) -> Path:
        return self.places[rank] / MANIFEST


def open_ranks(path: Path) -> Ranks:
    """The rank manifests at ``path``: a set's folder, a rank's, or the manifest of one.

    :raises LoadError: a manifest is damaged, or the ranks were not made for each other.
    """
    folder = path.parent if path.is_file() else path
    manifest = folder / MANIFEST
    kind = _kind(manifest) if manifest.is_file() else None
    if kind in RANK_KINDS:
        record = files.read_record(RANK_KINDS[kind], manifest)
        if not 0 <= record.rank < record.plan.ranks:
            raise LoadError(f"{manifest} is of a rank that its plan of {record.plan.ranks} ranks does not have.", hint="It was edited; make the rank anew.")
        return Ranks(path, folder.parent, {record.rank: record}, {record.rank: folder}, _summary(folder.parent, record), alone=True)
    first = next(iter(sorted(folder.glob(f"rank-*/{MANIFEST}"))), None)
    if first is None:
        raise LoadError(f"{folder} holds no finished rank (no rank-*/{MANIFEST}).", hint="Make its ranks, or remove the folder.")
    if _kind(first) not in RANK_KINDS:
        raise LoadError(f"{first} is of the unknown kind {_kind(first)!r}.", hint=f"Known are {', '.join(RANK_KINDS)}.")
    ranks = records.read_ranks(RANK_KINDS[_kind(first)], folder)
    records.require_alike(ranks, folder)
    places = {rank: folder / records.rank_folder(rank) for rank in ranks}
    return Ranks(path, folder, ranks, places, _summary(folder, next(iter(ranks.values()))), alone=False)


def _kind(manifest: Path) -> str:
    data = files.read_json(manifest)
    return str(data.get("kind")) if isinstance(data, dict) else type(data).__name__


def _summary(folder: Path, record: GraphsRank | EngineRank) -> RankSet | None:
    path, kind = folder / MANIFEST, SET_KINDS[type(record)]
    if not path.is_file():
        return None
    data = files.read_json(path)
    found = (data.get("kind"), data.get("version")) if isinstance(data, dict) else (type(data).__name__, None)
    if found != (kind, RankSet.version):
        raise LoadError(f"{path} is of kind {found[0]!r}, version {found[1]!r}, where {kind!r}, version {RankSet.version}, is expected.", hint="Make the set anew: finished ranks are kept.")
    return files.from_json(RankSet, data, str(path))


def read(path: Path) -> Found:
    """Sum up a set or a rank; sizes of all files are checked."""
    ranks = open_ranks(path)
    for rank, record in ranks.ranks.items():
        records.check_files(ranks.places[rank], record.files)
    if ranks.summary and not ranks.alone:
        records.check_files(ranks.folder, ranks.summary.files)
    claims, unproven, flaws = list(_claims(ranks)), [], [*_incomplete(ranks), *_disagreements(ranks)]
    graphs, table = _origin(ranks), _table(ranks)
    for origin in (graphs, table):
        claims += origin.claims
        unproven += origin.unproven
        flaws += origin.flaws
    return Found(_inspection(ranks, flaws, graphs.name), tuple(claims), tuple(flaws), tuple(unproven))


def _claims(ranks: Ranks) -> Iterator[Claim]:
    for rank, record in ranks.ranks.items():
        if ranks.summary and records.rank_folder(rank) in ranks.summary.ranks:
            yield Claim(ranks.manifest(rank), ranks.summary.ranks[records.rank_folder(rank)], ranks.folder / MANIFEST, "rank manifests")
        yield from claims_of(ranks.places[rank], record.files, ranks.manifest(rank), "files")
    if ranks.summary and not ranks.alone:
        yield from claims_of(ranks.folder, ranks.summary.files, ranks.folder / MANIFEST, "shared files")


def _incomplete(ranks: Ranks) -> list[str]:
    missing = ranks.missing
    return [f"{ranks.folder} has {len(ranks.ranks)} of the {ranks.first.plan.ranks} ranks of its plan: rank(s) {spans(missing)} are missing or unfinished"] if missing else []


def _disagreements(ranks: Ranks) -> Iterator[str]:
    """Where the set's manifest, which is derived, does not say what the ranks say."""
    told, first = ranks.summary, ranks.first
    if told is None:
        return
    mine = {"plan": first.plan, "plan_hash": first.plan_hash, "fingerprint": first.source.fingerprint, "backend": getattr(first, "backend", None)}
    if not ranks.alone:
        mine |= {"complete": not ranks.missing}
        stray = sorted(set(told.ranks) ^ {records.rank_folder(rank) for rank in ranks.ranks})
        if stray:
            yield f"{ranks.folder / MANIFEST} and the folders beside it do not name the same ranks: {cut(stray)}"
    for name, value in mine.items():
        if getattr(told, name) != value:
            yield f"{ranks.folder / MANIFEST} says another {name} than its ranks"


@dataclass(frozen=True)
class Origin:
    """What something was made from, as far as it is found."""

    claims: tuple[Claim, ...] = ()
    unproven: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()
    name: str | None = None
    """What it is called, where it was found."""


def _origin(ranks: Ranks) -> Origin:
    """The graphs that engines were built from, looked for beside them and one folder up."""
    if not isinstance(ranks.first, EngineRank):
        return Origin()
    name = records.rank_folder(ranks.first.rank)
    beside = [path for base in (ranks.folder.parent, ranks.folder.parent.parent) for path in sorted(base.glob(f"*/{name}/{MANIFEST}")) if _is(path, GraphsRank)]
    # Of folders that share the first rank the one that shares the most.
    alike = [path.parent.parent for path in beside if files.sha256_file(path) == ranks.first.graphs]
    found = max(alike, key=lambda folder: sum(_is_from(records.rank_manifest(folder, rank), record) for rank, record in ranks.ranks.items()), default=None)
    if found:
        what, held = f"manifests of {found.name}", [rank for rank in ranks.ranks if records.rank_manifest(found, rank).is_file()]
        return Origin(tuple(Claim(records.rank_manifest(found, rank), ranks.ranks[rank].graphs, ranks.manifest(rank), what) for rank in held), name=found.name)
    for path in beside:
        other = files.read_record(GraphsRank, path)
        if all(getattr(other, key) == getattr(ranks.first, key) for key in ("plan_hash", "source", "precision", "attention", "quantization")):
            return Origin(flaws=(f"{path} is not what {ranks.manifest(ranks.first.rank)} was built from, though of the same model and plan: made anew or changed since, or others",))
    return Origin(unproven=(f"the graphs that they were built from: none with the manifest {ranks.first.graphs[:12]} in the folders around",))


def _is_from(manifest: Path, record: EngineRank) -> bool:
    return manifest.is_file() and files.sha256_file(manifest) == record.graphs


def _table(ranks: Ranks) -> Origin:
    """The calibration table that quantised graphs name by its hash, looked for beside them."""
    made = ranks.first.quantization
    if not isinstance(ranks.first, GraphsRank) or made is None or made.table is None:
        return Origin()
    beside = sorted(ranks.folder.parent.glob("*.json"))
    by = ranks.manifest(ranks.first.rank)
    found = next((path for path in beside if files.sha256_file(path) == made.table), None)
    if found:
        return Origin((Claim(found, made.table, by, f"the table {found.name}"),), name=found.name)
    for path in beside:
        if _is(path, Table) and _fingerprint(path) in (None, ranks.first.source.fingerprint):
            return Origin(flaws=(f"{path} is not the table that {by} was quantised by ({made.table[:12]}): it was made anew or changed since",))
    return Origin(unproven=(f"the calibration table: none with the sha256 {made.table[:12]} beside the graphs",))


def _is(path: Path, record: type) -> bool:
    try:
        return _kind(path) == record.kind
    except LoadError:
        return path.name == "calibration.json" and record is Table


def _fingerprint(path: Path) -> str | None:
    try:
        return files.read_record(Table, path).source.fingerprint
    except LoadError:
        return None


def _inspection(ranks: Ranks, flaws: list[str], built_from: str | None) -> Inspection:
    lowered = [one for record in ranks.ranks.values() for one in getattr(record, "lowerings", ())]
    declined = without_repeats([(f"{one.op} → {name}", reason) for one in lowered for name, reason in one.refused.items()])
    return Inspection(
        path=str(ranks.path),
        kind=ranks.kind,
        line=_line(ranks, flaws),
        facts=_facts(ranks, built_from),
        record=_record(ranks),
        ranks=tuple(_rank(record) for record in ranks.ranks.values()),
        lowerings=dict(Counter(f"{one.op} → {one.chosen}" for one in lowered)),
        refusals={name: why for record in ranks.ranks.values() for name, why in getattr(record, "refusals", {}).items()} | declined,
        notes=(*_notes(ranks), *flaws),
    )


def _record(ranks: Ranks) -> dict[str, Any]:
    return {
        "set": files.to_json(ranks.summary) if ranks.summary and not ranks.alone else None,
        "digests": {records.rank_folder(rank): files.sha256_file(ranks.manifest(rank)) for rank in ranks.ranks},
        "ranks": {records.rank_folder(rank): files.to_json(record) for rank, record in ranks.ranks.items()},
    }


def _size(ranks: Ranks) -> int:
    return sum(stamp.bytes for record in ranks.ranks.values() for stamp in record.files.values())


def _line(ranks: Ranks, flaws: list[str]) -> str:
    first = ranks.first
    of = f"rank {first.rank} of {first.plan.ranks}" if ranks.alone else f"{len(ranks.ranks)} rank(s)" if not ranks.missing else f"{len(ranks.ranks)} of {first.plan.ranks} ranks"
    how = first.quantization.scheme if first.quantization else first.precision
    backend = f"{first.backend}, " if isinstance(first, EngineRank) else ""
    return f"{SET_KINDS[type(first)]}: {backend}{how}, {of}, {megabytes(_size(ranks))}{'; see its notes' if flaws and not ranks.missing else ''}"


def _notes(ranks: Ranks) -> Iterator[str]:
    first = ranks.first
    other = [rank for rank, record in ranks.ranks.items() if record.tools != first.tools]
    if other:
        yield f"rank(s) {spans(other)} were made with other tools than rank {first.rank}: {_tools(ranks.ranks[other[0]].tools)}"
    if isinstance(first, EngineRank):
        yield from BACKENDS[first.backend].capabilities.notes if first.backend in BACKENDS else ()
        yield from (f"{what}: {first.options[what]}" for what in ("fast", "experimental") if first.options.get(what))
        if needed := first.options.get("plugins"):
            yield f"needs {needed['library']}, plugins of version {needed['version']}, sha256 {short(needed['sha256'])}, to run"


def model_of(config: ModelConfig) -> str:
    return f"{config.family}, {config.layers} layers, hidden {config.hidden}, {config.experts} experts, vocabulary {config.vocab}"


def _tools(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tools.items())


def _facts(ranks: Ranks, built_from: str | None) -> dict[str, str]:
    record, made = ranks.first, ranks.quantization
    facts = {
        "model": model_of(record.config),
        "source": f"{record.source.name} {(record.source.fingerprint or 'config only')[:12]}",
        "plan": f"tensor {record.plan.tensor}, pipeline {record.plan.pipeline} ({record.plan_hash[:12]})",
        "precision": f"{record.precision}, attention {record.attention}",
    }
    if made:
        facts["quantised"] = _quantised(made)
    if isinstance(record, EngineRank):
        facts["backend"] = f"{record.backend}, context {record.max_context}, batch {record.max_batch}"
        facts["built from"] = f"{built_from or 'graphs that are not beside it'} ({record.graphs[:12]})"
    elif record.weights is None:
        facts["weights"] = "none: exported with --graphs-only"
    if made and not ranks.alone and isinstance(record, GraphsRank):
        reports = [name for name in ("report.json", "report.html") if (ranks.folder / name).is_file()]
        facts["report"] = ", ".join(reports) or "none beside it"
    if ranks.summary and not ranks.alone:
        facts["text"] = ", ".join(ranks.summary.files) or "no tokenizer"
    return facts | {"tools": _tools(record.tools)}


def _quantised(made: Quantization) -> str:
    inputs = ", ".join(f"{count} with {mode} inputs" for mode, count in Counter(made.weights.values()).items())
    parts = [f"{made.scheme}: {inputs or 'nothing'}"]
    parts += [f"by the table {made.table[:12]}"] if made.table else []
    parts += [f"smoothed by {made.smooth}"] if made.smooth is not None else []
    parts += [f"float: {cut(made.float_segments)}"] if made.float_segments else []
    parts += [f"{len(made.fallbacks)} experts with their layer's pooled range"] if made.fallbacks else []
    return "; ".join(parts)


def _rank(record: GraphsRank | EngineRank) -> dict[str, Any]:
    part, graphs = record.shard, records.segments_of(record).graphs
    owned = {name: [getattr(part, name).start, getattr(part, name).stop] for name in ("layers", "heads", "experts", "vocab")}
    return {"rank": record.rank} | owned | {"graphs": len(graphs), "files": len(record.files), "bytes": sum(stamp.bytes for stamp in record.files.values())}
