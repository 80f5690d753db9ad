"""What two records of one kind say differently, field by field."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

from .found import Inspection
from .kinds import read
from .screen import (
    INDENT,
    WIDTH,
    Section,
    cut,
    entry,
    figure,
    fit,
    is_number,
    named_layers,
    over_layers,
    section,
    span,
)

SETS = {"graphs": "graphs", "graphs-rank": "graphs", "engines": "engines", "engine-rank": "engines"}
ENTRIES = {"files", "signatures", "tensors", "linears", "experts", "weights", "activation_errors", "figures"}
"""Fields that hold many things by name: compared thing by thing, told together."""
DERIVED = {"request", "plan_hash", "measured", "kind", "version"}
"""Fields that follow from others, or that equal kinds share."""


@dataclass(frozen=True)
class Difference:
    """One field; None where a side has no such field."""

    path: tuple[str, ...]
    left: Any
    right: Any

    @property
    def where(self) -> str:
        return ".".join(filter(None, self.path))


@dataclass(frozen=True)
class Diff:
    """To ``inspect --diff``."""

    left: str
    right: str
    kinds: tuple[str, str]
    compared: tuple[str, ...]
    """Fields that were held against each other."""
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        return not self.differences

    def report(self) -> dict[str, Any]:
        found = [{"where": one.where, "left": one.left, "right": one.right} for one in self.differences]
        return {"same": self.same, "left": self.left, "right": self.right, "kinds": list(self.kinds), "compared": list(self.compared), "differences": found}

    def summary(self) -> str:
        what = self.kinds[0] if self.kinds[0] == self.kinds[1] else " and ".join(self.kinds)
        head = [f"left   {self.left}", f"right  {self.right}"]
        if self.same:
            return "\n".join([*head, *entry("same", f"{what}: {', '.join(self.compared)}")])
        plain = [one for one in self.differences if one.path[0] not in ENTRIES]
        groups: dict[str, list[Difference]] = {}
        for one in self.differences:
            if one.path[0] in ENTRIES:
                groups.setdefault(one.path[0], []).append(one)
        indent = min(max([INDENT, *(len(one.where) + 4 for one in plain)]), WIDTH // 2)
        fields = Section("", tuple(entry(one.where, _change(one), indent=indent) for one in plain), least=3)
        sections = [fields, *(_entries(name, group) for name, group in groups.items())]
        return fit([*head, f"{len(self.differences)} difference(s) of {what}, left → right:"], sections)


def diff(left: Path, right: Path) -> Diff:
    """Hold two records against each other.

    :raises UsageError: they are of kinds that have nothing to compare.
    """
    one, other = read(left).inspection, read(right).inspection
    mine, theirs = _fields(one, other), _fields(other, one)
    compared = tuple(name for name in mine if name in theirs) if _family(one.kind) != _family(other.kind) else tuple(dict.fromkeys([*mine, *theirs]))
    found = [difference for name in compared for difference in _walk(mine.get(name), theirs.get(name), (name,))]
    return Diff(str(left), str(right), (one.kind, other.kind), compared, tuple(found))


def _family(kind: str) -> str:
    return SETS.get(kind, {"config": "checkpoint", "shards-rank": "shards"}.get(kind, kind))


def _fields(one: Inspection, other: Inspection) -> dict[str, Any]:
    """What is compared of ``one``, for a pair with ``other``."""
    kinds = (_family(one.kind), _family(other.kind))
    if kinds[0] == kinds[1] and kinds[0] in VIEWS:
        return VIEWS[kinds[0]](one, other)
    if kinds[0] == kinds[1] and isinstance(one.record, dict | list):
        return _plain(one.record) if isinstance(one.record, dict) else {"layers": one.record}
    if set(kinds) == {"graphs", "engines"}:
        return _of_graphs_and_engines(one)
    if "checkpoint" in kinds and set(kinds) & {"graphs", "engines"}:
        return _of_source(one)
    raise UsageError(f"{one.path} is of the kind {one.kind}, {other.path} of the kind {other.kind}.", hint="Give two of one kind, or graphs and the engines or the checkpoint beside them.")


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in DERIVED}


def _common(record: dict[str, Any], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What graphs and engines state alike."""
    made = [rank["quantization"] for rank in ranks if rank["quantization"]]
    quantised = made[0] | {part: {name: how for one in made for name, how in one[part].items()} for part in ("weights", "fallbacks")} if made else None
    return {"source": _source(record["source"]), "config": record["config"], "plan": record["plan"], "precision": record["precision"], "attention": record["attention"], "quantization": quantised}


def _source(source: dict[str, Any] | None) -> dict[str, Any] | None:
    return source and {name: value for name, value in source.items() if name != "name"}


def _of_ranks(one: Inspection, other: Inspection) -> dict[str, Any]:
    """Of a set or a rank: a lone rank is held against its like alone, two lone ranks against each other."""
    ranks = _shared(one, other)
    first = next(iter(ranks.values()))
    fields = _common(first, list(ranks.values())) | {name: first[name] for name in ("backend", "max_context", "max_batch", "options") if name in first}
    fields |= {"tools": first["tools"], "ranks": {name: _owned(rank["shard"]) for name, rank in ranks.items()}}
    if "lowerings" in first:
        fields |= {"lowerings": dict(one.lowerings), "refusals": dict(one.refusals)}
    fields["files"] = {f"{name}/{file}".strip("/"): stamp for name, rank in ranks.items() for file, stamp in rank["files"].items()}
    fields["files"] |= one.record["set"]["files"] if one.record["set"] and other.record["set"] else {}
    fields["signatures"] = {f"{name}/{launch}".strip("/"): _signature(said) for name, rank in ranks.items() for assembly in ("whole", "segments", "assembly") if assembly in rank for launch, said in rank[assembly]["signatures"].items()}
    return fields


def _owned(shard: dict[str, Any]) -> dict[str, str]:
    return {name: span(value["start"], value["stop"]) for name, value in shard.items() if isinstance(value, dict)}


def _shared(one: Inspection, other: Inspection) -> dict[str, Any]:
    mine, theirs = one.record["ranks"], other.record["ranks"]
    lone = one.kind.endswith("-rank"), other.kind.endswith("-rank")
    if all(lone):
        return {"": next(iter(mine.values()))}
    both = {name: rank for name, rank in mine.items() if name in theirs}
    if any(lone) and not both:
        raise UsageError(f"{one.path} and {other.path} have no rank in common: {', '.join(mine)} and {', '.join(theirs)}.", hint="Give two ranks, or two sets.")
    return both if any(lone) else mine


def _signature(said: dict[str, Any]) -> dict[str, str]:
    told = {f"{side} {one['name']}": f"{one['dtype']} {one['shape']}" for side, part in (("in", "inputs"), ("out", "outputs")) for one in said[part]}
    return told | {f"state {one['input']}": one["output"] for one in said["states"]}


def _of_graphs_and_engines(one: Inspection) -> dict[str, Any]:
    """Whether engines are of these graphs: by the digest that the engines keep of each rank's manifest."""
    ranks = one.record["ranks"]
    first = next(iter(ranks.values()))
    digests = {name: rank["graphs"] for name, rank in ranks.items()} if "graphs" in first else one.record["digests"]
    return _common(first, list(ranks.values())) | {"graphs": digests}


def _of_source(one: Inspection) -> dict[str, Any]:
    """Whether graphs or engines are of this checkpoint."""
    record = one.record if "config" in one.record else next(iter(one.record["ranks"].values()))
    return {"config": record["config"]} | ({"source": _source(record["source"])} if record["source"] and record["source"]["fingerprint"] else {})


def _of_checkpoint(one: Inspection, other: Inspection) -> dict[str, Any]:
    fields = {"config": one.record["config"]}
    if one.record["source"] and other.record["source"]:
        fields |= {"source": _source(one.record["source"]), "tensors": {name: {key: info[key] for key in ("dtype", "shape")} for name, info in one.record["tensors"].items()}}
    return fields


def _of_shards(one: Inspection, other: Inspection) -> dict[str, Any]:
    records = list(one.record.values())
    first = records[0]
    lone = one.kind.endswith("-rank") and other.kind.endswith("-rank")
    stamps = {("shard" if lone else name): stamp for record in records for name, stamp in record["files"].items()}
    return {"source": _source(first["source"]), "config": first["config"], "plan": first["plan"], "dtype": first["dtype"], "unused": first["unused"], "tools": first["tools"], "files": stamps}


def _of_table(one: Inspection, other: Inspection) -> dict[str, Any]:
    fields = _plain(one.record)
    shown = ("amax", "maximum", "count", "error")
    fields["linears"] = {name: {key: said[key] for key in shown} for name, said in fields["linears"].items()}
    return fields | {"source": _source(fields["source"])}


def _of_report(one: Inspection, other: Inspection) -> dict[str, Any]:
    fields = _plain(one.record) | {"weights": {said["name"]: said for said in one.record["weights"]}}
    fields["table"] = fields["table"] and _plain({name: value for name, value in fields["table"].items() if name not in ENTRIES})
    return fields | {"sensitivity": {said["segment"]: said["kl"] for said in one.record["sensitivity"]}}


def _of_bench(one: Inspection, other: Inspection) -> dict[str, Any]:
    figures = {name: value for name, value in one.record.items() if is_number(value)}
    return {"figures": figures} | {name: value for name, value in one.record.items() if name not in figures}


VIEWS: dict[str, Callable[[Inspection, Inspection], dict[str, Any]]] = {
    "graphs": _of_ranks,
    "engines": _of_ranks,
    "checkpoint": _of_checkpoint,
    "shards": _of_shards,
    "calibration": _of_table,
    "quantization-report": _of_report,
    "bench": _of_bench,
}
"""Kind → the fields that are compared of it; of others all are."""


def _walk(left: Any, right: Any, path: tuple[str, ...]) -> Iterator[Difference]:
    """The least fields that differ; named things are compared whole."""
    whole = len(path) > 1 and path[0] in ENTRIES
    if isinstance(left, dict) and isinstance(right, dict) and not whole:
        for name in dict.fromkeys([*left, *right]):
            yield from _walk(left.get(name), right.get(name), (*path, name))
    elif left != right:
        yield Difference(path, left, right)


def _change(one: Difference) -> str:
    """``left → right``, and of what was measured by how much it moved."""
    measured = isinstance(one.left, float) or isinstance(one.right, float)
    moved = measured and one.path[0] != "config" and is_number(one.left) and is_number(one.right) and one.left
    return f"{_brief(one.left)} → {_brief(one.right)}" + (f" ({one.right / one.left - 1:+.1%})" if moved else "")


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, dict):
        told = (f"{name} {f'of {len(item)}' if isinstance(item, dict) else _brief(item)}" for name, item in value.items() if item not in (None, [], {}))
        return cut(told, 3) or "nothing"
    text = ", ".join(map(_brief, value)) if isinstance(value, list) else figure(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _entries(name: str, group: list[Difference]) -> Section:
    """Named things: which only one side has, and how the others differ."""
    sides = {"only left": [one for one in group if one.right is None], "only right": [one for one in group if one.left is None]}
    told = [f"{side}: {len(found)}: {_names(one.path[1] for one in found)}" for side, found in sides.items() if found]
    both = [one for one in group if one.left is not None and one.right is not None]
    return section(name, [*told, *(SORTS.get(name, _others)(both) if both else ())])


def _others(both: list[Difference]) -> Iterator[str]:
    yield f"other: {len(both)}: {_names(one.path[1] for one in both)}"


def _names(names: Iterable[str]) -> str:
    """Names that differ in their rank or layer alone, taken together."""
    by_rank: dict[str, None] = {}
    for name in names:
        rank, slash, rest = name.partition("/")
        by_rank[f"rank-*/{rest}" if slash and rank.startswith("rank-") else name] = None
    return cut((named_layers(pattern, layers) for pattern, layers in over_layers(by_rank).items()), 6)


def _files(both: list[Difference]) -> Iterator[str]:
    other_size = [one for one in both if one.left.get("bytes") != one.right.get("bytes")]
    contents = [one for one in both if one not in other_size]
    for what, group in (("other size", other_size), ("same size, other contents", contents)):
        if group:
            yield f"{what}: {len(group)}: {_names(one.path[1] for one in group)}"


def _moved(both: list[Difference]) -> Iterator[str]:
    """Figures, or the ranges of what has several, those that moved most first."""
    figures = [Difference(one.path, *(side["amax"] if isinstance(side, dict) else side for side in (one.left, one.right))) for one in both]
    for one in sorted(figures, key=lambda one: -abs(one.right / one.left - 1) if one.left else float("-inf")):
        yield f"{one.path[1]}: {_change(one)}"


SORTS: dict[str, Callable[[list[Difference]], Iterator[str]]] = {"files": _files, "linears": _moved, "figures": _moved, "activation_errors": _moved}
"""Named things → how those that both sides have are told."""
