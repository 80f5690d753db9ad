"""The joined graph of all ranks as a file of the set: made when the last rank is built, so that whoever loads need not make it.

It is derived, and says of what: a loader that finds it of other graphs than those beside it leaves it alone.
"""

from dataclasses import dataclass
from pathlib import Path

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, FileStamp
from exporter.plan.signature import Signature

from .fuse import fuse

GRAPH, RECORD = "joined.onnx", "joined.json"


@dataclass(frozen=True)
class Joined:
    """``joined.json``."""

    graphs: dict[str, dict[str, str]]
    """Rank folder → graph's file → sha256, of those that were joined."""
    graph: FileStamp
    """Of the joined graph's file."""
    signature: Signature
    kind: str = "joined"
    version: int = 1


def write_joined(folder: Path) -> dict[str, FileStamp]:
    """Join the ranks of a folder, where they are several, whole and for a CPU. :returns: what was written, by name."""
    ranks = records.read_ranks(EngineRank, folder)
    first = next(iter(ranks.values()))
    there = read_joined(folder, ranks)
    if there:
        return {GRAPH: there.graph, RECORD: records.stamp(folder / RECORD)}
    for name in (GRAPH, RECORD):
        (folder / name).unlink(missing_ok=True)
    if first.backend != "ort" or first.plan.ranks == 1 or set(ranks) != set(range(first.plan.ranks)):
        return {}
    made = fuse(folder, {rank: record.assembly for rank, record in ranks.items()}, first.config, first.plan.tensor)
    files.write_bytes(folder / GRAPH, made.model.SerializeToString(deterministic=True))
    graph = records.stamp(folder / GRAPH)
    files.write_record(folder / RECORD, Joined(graphs_of(ranks), graph, made.signature))
    return {GRAPH: graph, RECORD: records.stamp(folder / RECORD)}


def read_joined(folder: Path, ranks: dict[int, EngineRank]) -> Joined | None:
    """The record of the joined graph; None where there is none of these ranks' graphs, or the file has another size."""
    if not (folder / RECORD).is_file() or not (folder / GRAPH).is_file():
        return None
    try:
        found = files.read_record(Joined, folder / RECORD)
    except LoadError:
        return None
    fits = found.graph.bytes == (folder / GRAPH).stat().st_size
    return found if fits and found.graphs == graphs_of(ranks) else None


def graphs_of(ranks: dict[int, EngineRank]) -> dict[str, dict[str, str]]:
    """What the ranks' manifests say of their graphs."""
    return {records.rank_folder(rank): {file: record.files[file].sha256 for file in sorted(record.assembly.graphs.values())} for rank, record in sorted(ranks.items())}
