"""Why a node became what it became: the rewrite that was taken, those that refused, those that were not asked."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.lowering import LOWERINGS, lower
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan.manifest import EngineRank, GraphsRank, Lowering, check_files

from ..backends import find_backend
from .screen import Section, any_layer, entry, fit, joined, named_layers, over_layers, section, spans
from .sets import Ranks, open_ranks


@dataclass(frozen=True)
class Node:
    """A node of one rank, and what became of it."""

    rank: int
    name: str
    op: str
    lowering: Lowering | None
    """None for a standard operator, which no rewrite is asked about."""


@dataclass(frozen=True)
class Story:
    """Nodes that fared alike."""

    op: str
    chosen: str
    refused: dict[str, str]
    """Rewrite → reason; ``layers.*`` stands for the nodes' own layers."""
    untried: tuple[str, ...]
    """Rewrites that come after the one that was taken."""
    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    count: int
    """Nodes, over all ranks."""

    def lines(self) -> tuple[str, ...]:
        patterns = over_layers(self.nodes)
        names = [named_layers(pattern, layers) for pattern, layers in patterns.items()]
        head = f"{self.op} × {self.count} → {self.chosen}, rank(s) {spans(self.ranks)}"
        told = [*entry("at", joined([*names[:4], *([f"… and {len(names) - 4} more"] if len(names) > 4 else [])]))]
        told += [line for name, reason in self.refused.items() for line in entry("refused", f"{name}: {reason}")]
        told += entry("not asked", f"{', '.join(self.untried)}: {self.chosen} comes before") if self.untried else ()
        return (head, *told)


@dataclass(frozen=True)
class Answer:
    """To ``inspect --why``."""

    path: str
    asked: str
    backend: str
    built: bool
    """Of engines; otherwise what would be chosen."""
    stories: tuple[Story, ...]
    standard: dict[str, int]
    """Standard operators that the words also name → how many; they stay as they are."""
    notes: tuple[str, ...] = ()

    def report(self) -> Any:
        return files.to_json(self)

    def summary(self) -> str:
        total = sum(story.count for story in self.stories)
        head = [f"{self.path}: why {self.asked}, {total} node(s) {'built' if self.built else 'if built'} for {self.backend}"]
        stories = Section("", tuple(story.lines() for story in self.stories), where=" that fared otherwise: --json")
        standard = Counter(self.standard).most_common()
        others = joined([*(f"{op} × {count}" for op, count in standard[:6]), *(["…"] if len(standard) > 6 else [])])
        kept = [section("standard", (f"{sum(self.standard.values())} operators that no rewrite is asked about: {others}",))] if standard else []
        return fit(head, [stories, *kept, section("note", self.notes)])


def explain(path: Path, asked: str, backend: str | None = None, fast: bool = False, plugins: bool = False) -> Answer:
    """What became of the nodes that ``asked`` names: in engines by their manifests, in graphs by lowering them now.

    :param asked: a node's name, a segment, a part or a pattern of a name, or an op.
    :raises UsageError: no node is called so; the hint names some that are.
    """
    ranks = open_ranks(path)
    built = isinstance(ranks.first, EngineRank)
    if built and (backend or fast or plugins):
        raise UsageError(f"{path} holds engines, built for {ranks.first.backend}; --backend, --fast and --plugins are for graphs.", hint="Leave them out, or give the graphs.")
    if not built and backend is None:
        raise UsageError(f"{path} holds graphs, which are not lowered yet.", hint="Say for what backend they would be: --backend ort.")
    nodes = list(_recorded(ranks) if built else _would_become(ranks, backend, fast, plugins))
    found = _named(asked, nodes, str(path))
    stories = _stories(node for node in found if node.lowering)
    standard = Counter(node.op for node in found if node.lowering is None)
    notes = () if built else tuple(_notes(ranks, backend))
    return Answer(str(path), asked, ranks.first.backend if built else backend, built, tuple(stories), dict(standard), notes)


def _recorded(ranks: Ranks) -> Iterator[Node]:
    for rank, record in ranks.ranks.items():
        yield from (Node(rank, one.node, one.op, one) for one in record.lowerings)


def _would_become(ranks: Ranks, backend: str, fast: bool, plugins: bool) -> Iterator[Node]:
    """Lowers each graph that ``build`` would: headers alone, no weight is read."""
    known = find_backend(backend)
    if plugins and not known.with_plugins:
        raise UsageError(f"the backend {backend} has no use for --plugins.", hint="They are for ort, tensorrt and tensorrt-rtx.")
    able = known.with_plugins(known.capabilities) if plugins else known.capabilities
    for rank, record in ranks.ranks.items():
        check_files(ranks.places[rank], record.files)
        whole = record.plan.tensor == 1 or known.capabilities.collectives_inside
        for file in (record.whole if whole else record.segments).graphs.values():
            model = load_graph(ranks.places[rank] / file)
            _, lowered = lower(model, able, {} if known.derives else None, fast)
            by_name = {one.node: one for one in lowered}
            yield from (Node(rank, node.name, by_name[node.name].op if node.name in by_name else node.op_type, by_name.get(node.name)) for node in model.graph.node)


def _notes(ranks: Ranks, backend: str) -> Iterator[str]:
    able, record = find_backend(backend).capabilities, ranks.first
    if isinstance(record, GraphsRank) and record.precision not in able.dtypes:
        yield f"`build` would refuse these graphs: {backend} does not compute in {record.precision}"


def _dotted(name: str) -> str:
    """``/layers.3/moe_ffn/Route`` as users may write it: ``layers.3.moe_ffn.Route``."""
    return name.strip("/").replace("/", ".")


RULES: tuple[Callable[[str, Node], bool], ...] = (
    lambda asked, node: _dotted(asked) == _dotted(node.name),
    lambda asked, node: asked.lower() == node.op.lower(),
    lambda asked, node: f"{_dotted(node.name)}.".startswith(f"{_dotted(asked)}."),
    lambda asked, node: fnmatchcase(_dotted(node.name), _dotted(asked)) or fnmatchcase(node.op, asked),
    lambda asked, node: _dotted(asked).lower() in _dotted(node.name).lower(),
)
"""How words may name a node; the first rule that finds any is taken, so that ``layers.1`` is not ``layers.10``."""


def _named(asked: str, nodes: list[Node], where: str) -> list[Node]:
    for rule in RULES if _dotted(asked) else ():
        found = [node for node in nodes if rule(asked, node)]
        if found:
            return found
    names = dict.fromkeys(name for node in nodes if node.lowering for name in (node.name, node.op, ".".join(_dotted(node.name).split(".")[:3])))
    near, ops = difflib.get_close_matches(asked, list(names), n=3, cutoff=0.5), list(dict.fromkeys(node.op for node in nodes if node.lowering))
    hint = f"Near it are {', '.join(near)}." if near else f"Ops that were lowered here are {', '.join(ops)}." if ops else "No node was lowered here."
    raise UsageError(f"{where} has no lowered node called {asked!r}.", hint=f"{hint} Standard operators are listed of graphs alone.")


def _stories(nodes: Iterable[Node]) -> list[Story]:
    groups: dict[tuple, list[Node]] = {}
    for node in nodes:
        one = node.lowering
        refused = tuple((name, any_layer(reason)) for name, reason in one.refused.items())
        groups.setdefault((one.op, one.chosen, refused), []).append(node)
    return [
        Story(op, chosen, dict(refused), _untried(op, chosen), tuple(dict.fromkeys(node.name for node in group)), tuple(sorted({node.rank for node in group})), len(group))
        for (op, chosen, refused), group in groups.items()
    ]


def _untried(op: str, chosen: str) -> tuple[str, ...]:
    names = [one.name for one in LOWERINGS.get(op, ())]
    return tuple(names[names.index(chosen) + 1 :]) if chosen in names else ()
