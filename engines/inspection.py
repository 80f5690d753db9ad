"""What is in a folder that moetrt wrote, or that it reads: in words, as JSON, with every hash if asked."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.models import read_model
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import EngineRank, GraphsRank, Quantization, RankSet

from .backends import BACKENDS


@dataclass(frozen=True)
class Inspection:
    """A folder, summed up."""

    path: str
    kind: str
    """``graphs``, ``engines`` or ``checkpoint``."""
    facts: dict[str, Any]
    ranks: tuple[dict[str, Any], ...] = ()
    lowerings: dict[str, int] = field(default_factory=dict)
    """``op → rewrite`` → how many nodes, over all ranks."""
    refusals: dict[str, str] = field(default_factory=dict)
    """What a backend or rewrite declined → why."""
    notes: tuple[str, ...] = ()
    verified: bool = False

    def summary(self) -> str:
        lines = [f"{self.path}: {self.kind}{', every hash verified' if self.verified else ''}"]
        lines += [f"  {name:14} {value}" for name, value in self.facts.items()]
        lines += ["  " + "  ".join(f"{name} {value}" for name, value in rank.items()) for rank in self.ranks]
        lines += [f"  lowered        {name} × {count}" for name, count in self.lowerings.items()]
        lines += [f"  refused        {name}: {reason}" for name, reason in self.refusals.items()]
        return "\n".join([*lines, *(f"  note           {note}" for note in self.notes)])


def inspect(path: Path, verify: bool = False) -> Inspection:
    """Sum up ``path``.

    :param verify: recompute every hash that a manifest lists.
    :raises LoadError: it is none of ours, incomplete, or damaged.
    """
    if not path.is_dir():
        raise LoadError(f"{path} is not a folder.", hint="Give a folder of graphs, engines or a checkpoint.")
    first = next(iter(sorted(path.glob(f"rank-*/{records.MANIFEST}"))), None)
    if first:
        kinds = {record.kind: record for record in (GraphsRank, EngineRank)}
        kind = files.read_json(first).get("kind")
        if kind not in kinds:
            raise LoadError(f"{first} is of the unknown kind {kind!r}.")
        return _inspect_set(path, kinds[kind], verify)
    if (path / "config.json").is_file():
        return _inspect_checkpoint(path)
    raise LoadError(f"{path} holds nothing that moetrt knows.", hint="Give a folder of graphs, engines or a checkpoint.")


def _inspect_set(path: Path, kind: type, verify: bool) -> Inspection:
    ranks = records.read_ranks(kind, path)
    records.require_set(ranks, path)
    for rank, record in ranks.items():
        records.check_files(path / records.rank_folder(rank), record.files, verify)
    if (path / records.MANIFEST).is_file():
        shared = files.from_json(RankSet, files.read_json(path / records.MANIFEST), str(path / records.MANIFEST)).files
        records.check_files(path, shared, verify)
    first = ranks[0]
    lowerings = [one for record in ranks.values() for one in getattr(record, "lowerings", ())]
    refused = {f"{one.op} → {name}": reason for one in lowerings for name, reason in one.refused.items()}
    return Inspection(
        path=str(path),
        kind="graphs" if kind is GraphsRank else "engines",
        facts=_facts(first),
        ranks=tuple(_rank(record) for record in ranks.values()),
        lowerings=dict(Counter(f"{one.op} → {one.chosen}" for one in lowerings)),
        refusals=refused | dict(getattr(first, "refusals", {})),
        notes=_notes(first) if isinstance(first, EngineRank) else (),
        verified=verify,
    )


def _notes(record: EngineRank) -> tuple[str, ...]:
    told = [f"{what}: {record.options[what]}" for what in ("fast", "experimental") if what in record.options]
    known = BACKENDS[record.backend].capabilities.notes if record.backend in BACKENDS else ()
    return (*known, *told)


def _model(config: ModelConfig) -> str:
    return f"{config.family}, {config.layers} layers, hidden {config.hidden}, {config.experts} experts, vocabulary {config.vocab}"


def _facts(record: Any) -> dict[str, Any]:
    config = record.config
    facts = {
        "model": _model(config),
        "source": f"{record.source.name} {(record.source.fingerprint or 'config only')[:12]}",
        "plan": f"tensor {record.plan.tensor}, pipeline {record.plan.pipeline} ({record.plan_hash[:12]})",
        "precision": f"{record.precision}, attention {record.attention}",
    }
    if record.quantization:
        facts["quantised"] = _quantised(record.quantization)
    if isinstance(record, EngineRank):
        facts["backend"] = f"{record.backend}, context {record.max_context}, batch {record.max_batch}"
    return facts | {"tools": ", ".join(f"{name} {version}" for name, version in record.tools.items())}


def _quantised(made: Quantization) -> str:
    inputs = ", ".join(f"{count} with {mode} inputs" for mode, count in Counter(made.weights.values()).items())
    parts = [f"{made.scheme}: {inputs or 'nothing'}"]
    parts += [f"by the table {made.table[:12]}"] if made.table else []
    parts += [f"smoothed by {made.smooth}"] if made.smooth is not None else []
    parts += [f"float: {', '.join(made.float_segments)}"] if made.float_segments else []
    parts += [f"{len(made.fallbacks)} experts with their layer's pooled range"] if made.fallbacks else []
    return "; ".join(parts)


def _rank(record: Any) -> dict[str, Any]:
    part, graphs = record.shard, record.segments.graphs if isinstance(record, GraphsRank) else record.assembly.graphs
    size = sum(stamp.bytes for stamp in record.files.values())
    return {
        "rank": record.rank,
        "layers": f"{part.layers.start}–{part.layers.stop - 1}",
        "heads": f"{part.heads.start}–{part.heads.stop - 1}",
        "experts": f"{part.experts.start}–{part.experts.stop - 1}" if len(part.experts) else "none",
        "graphs": len(graphs),
        "files": len(record.files),
        "MB": round(size / 1e6, 1),
    }


def _inspect_checkpoint(path: Path) -> Inspection:
    from exporter.checkpoint.reader import Checkpoint
    from exporter.models import FAMILIES

    config = read_model(path).config
    facts = {
        "model": _model(config),
        "stored": config.stored,
        "context": f"{config.positions} tokens",
    }
    if not list(path.glob("*.safetensors")):
        return Inspection(str(path), "checkpoint", facts | {"tensors": "config.json only"})
    checkpoint, family = Checkpoint(path, config), FAMILIES[config.family]
    unused = checkpoint.coverage(config, family.KEYS, family.UNUSED)
    total = sum(info.bytes for info in checkpoint.headers.values())
    found = facts | {"tensors": f"{len(checkpoint.headers)}, {total / 1e6:.1f} MB, {len(unused)} unused", "fingerprint": checkpoint.fingerprint()}
    return Inspection(str(path), "checkpoint", found, refusals={f"unused {name}": reason for name, reason in unused.items()})
