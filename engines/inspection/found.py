"""What was found at a path: the summary, and what there is to verify of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.plan import files

from .hashes import Claim
from .screen import INDENT, Section, any_layer, entry, fit, joined, megabytes, section, span, table

MANY_RANKS = 8
"""Beyond these, ranks of one stage share a row."""


@dataclass(frozen=True)
class Inspection:
    """A folder or file, summed up."""

    path: str
    kind: str
    """As the record states it (``graphs``, ``engine-rank``, ``calibration`` …), or what was found (``checkpoint``, ``build``)."""
    line: str
    """What it is, in one line of a list."""
    facts: dict[str, str]
    """What → in words."""
    record: Any = None
    """All that is recorded, as JSON: what the summary is drawn from."""
    ranks: tuple[dict[str, Any], ...] = ()
    """A row a rank; ranges half-open."""
    lowerings: dict[str, int] = field(default_factory=dict)
    """``op → rewrite`` → how many nodes, over all ranks."""
    refusals: dict[str, str] = field(default_factory=dict)
    """What a backend or rewrite declined → why."""
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Longer lists, by name: on the screen as far as there is room."""
    notes: tuple[str, ...] = ()
    contents: "tuple[Inspection, ...]" = ()
    """Of a build folder: what it holds."""
    verified: bool = False
    verified_files: dict[str, int] = field(default_factory=dict)
    """What was verified → how many."""
    unverified: tuple[str, ...] = ()
    """What no record vouches for, and why."""
    problems: tuple[str, ...] = ()
    """All that verifying found wrong, a sentence each."""

    def report(self) -> Any:
        """The keys of ``moetrt inspect --json``."""
        return files.to_json(self)

    def summary(self) -> str:
        head = [f"{self.path}: {self.kind}{', every hash verified' if self.verified else ''}"]
        head += [line for name, value in self.facts.items() for line in entry(name, value)]
        sections = [
            self._ranks(),
            section("lowered", [joined(f"{name} × {count}" for name, count in self.lowerings.items())] if self.lowerings else ()),
            section("refused", (f"{name}: {reason}" for name, reason in self.refusals.items()), least=0, where=": --json, or --why '*'"),
            *(section(name, values) for name, values in self.lists.items()),
            self._contents(),
            Section("note", tuple(entry("note", note) for note in self.notes), least=len(self.notes)),
            section("verified", [joined(f"{what} {count}" for what, count in self.verified_files.items())] if self.verified_files else ()),
            section("not verified", self.unverified, least=len(self.unverified)),
        ]
        return fit(head, sections)

    def _ranks(self) -> Section:
        if not self.ranks:
            return Section("ranks", ())
        rows = [_row([rank]) for rank in self.ranks] if len(self.ranks) <= MANY_RANKS else [_row(group) for group in _stages(self.ranks)]
        return Section("ranks", tuple((line,) for line in table(rows)), least=4)

    def _contents(self) -> Section:
        if not self.contents:
            return Section("holds", ())
        names = [str(Path(one.path).relative_to(self.path)) for one in self.contents]
        wide = max(INDENT - 4, *map(len, names))
        return Section("holds", tuple((f"  {name.ljust(wide)}  {one.line}",) for name, one in zip(names, self.contents, strict=True)), least=6)


def damaged(path: Path, reason: str) -> Inspection:
    """Of what cannot be read."""
    return Inspection(str(path), "damaged", f"damaged: {reason}", {"error": reason})


class Unverified(LoadError):
    """Verifying found something wrong.

    :param inspection: what is there all the same, with all problems.
    """

    def __init__(self, message: str, hint: str | None, inspection: Inspection) -> None:
        super().__init__(message, hint)
        self.inspection = inspection


@dataclass(frozen=True)
class Found:
    """What a reader makes of a path."""

    inspection: Inspection
    claims: tuple[Claim, ...] = ()
    """Hashes that records state, to be recomputed."""
    flaws: tuple[str, ...] = ()
    """What is wrong with it beyond hashes; verifying refuses it."""
    unproven: tuple[str, ...] = ()
    """What no record vouches for, and why."""


def _stages(ranks: tuple[dict[str, Any], ...]) -> list[list[dict[str, Any]]]:
    """Neighbours that have the same layers."""
    groups: list[list[dict[str, Any]]] = []
    for rank in ranks:
        if groups and groups[-1][-1].get("layers") == rank.get("layers") and groups[-1][-1]["rank"] + 1 == rank["rank"]:
            groups[-1].append(rank)
        else:
            groups.append([rank])
    return groups


def _row(group: list[dict[str, Any]]) -> dict[str, str]:
    """One rank, or several as one: their ranges joined, their sizes from the least to the most."""
    row = {}
    for key in group[0]:
        values = [rank[key] for rank in group]
        if key == "rank":
            row[key] = span(values[0], values[-1] + 1)
        elif isinstance(values[0], list):
            row[key] = span(min(start for start, _ in values), max(stop for _, stop in values))
        else:
            low, high = (_size(key, end) for end in (min(values), max(values)))
            row["MB" if key == "bytes" else key] = low if low == high else f"{low}–{high}"
    return row


def _size(key: str, value: int) -> str:
    return megabytes(value).removesuffix(" MB") if key == "bytes" else f"{value:,}"


def without_repeats(refusals: list[tuple[str, str]]) -> dict[str, str]:
    """What declined → why, reasons that differ in the layer alone told once; further reasons are joined."""
    told: dict[str, dict[str, None]] = {}
    for name, reason in refusals:
        told.setdefault(name, {})[any_layer(reason)] = None
    return {name: "; or ".join(reasons) for name, reasons in told.items()}
