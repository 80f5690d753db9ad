"""A folder becomes a chain, after it has been found whole and of one make."""

import logging
import os
import time
from pathlib import Path

from exporter.errors import LoadError, UsageError
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, GraphsRank

from ..backends import find_backend
from ..backends.plugins import KINDS, OPS_LIBRARY, SHOWN, Kind, problem_of
from .chain import Chain, RankRunner
from .openers import Opener, OrtOpener, Seat
from .session import AS_WRITTEN, LIBRARY

log = logging.getLogger(__name__)
GRAPHS = "portable graphs"
"""In the place of a backend's name."""

def load(path: str | Path, verify: bool = False, threads: int | None = None, joined: bool = True, plugins: Path | None = None) -> Chain:
    """A chain of the engines in ``path``; or of portable graphs, which run as they are on stock ONNX Runtime.

    :param verify: recompute every hash; otherwise sizes are checked.
    :param threads: threads in all, which ranks have in turn. The cores at hand when None.
    :param joined: let ranks of one CPU run as one graph, which reads what all of them hold from the first of them; False: each
        rank computes from its own files alone, as it would on a machine of its own.
    :param plugins: the library of kernels that the engines were built with, where it is not the file of its name beside them.
    :raises LoadError: ranks are missing, damaged or not made for each other, or the backend does not run here.
    """
    folder, began = Path(path), time.perf_counter()
    ranks = read_set(folder)
    for rank, record in ranks.items():
        records.check_files(folder / records.rank_folder(rank), record.files, verify)
    cores = threads or os.cpu_count() or 1
    backend = getattr(ranks[0], "backend", GRAPHS)
    library = _library(folder, ranks, KINDS.get(backend, OPS_LIBRARY), plugins)
    opener = _opener(folder, ranks)
    runners = {rank: RankRunner(_seat(folder / records.rank_folder(rank), record, cores, library), opener) for rank, record in sorted(ranks.items())}
    first = ranks[0]
    chain = Chain(folder, ranks, runners, first.max_context if isinstance(first, EngineRank) else first.config.positions, joined)
    how = "joined into one graph" if chain.joined else "each on its own"
    log.info("opened %s: %d rank(s) of %s, %s, in %.2f s", folder, len(ranks), backend, how, time.perf_counter() - began)
    return chain


def read_set(folder: Path) -> dict[int, EngineRank] | dict[int, GraphsRank]:
    """The rank manifests of an engines or graphs folder, complete and agreeing."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder.", hint="Give the folder that `moetrt build` wrote.")
    records.require_set_version(folder)
    ranks = records.read_ranks(records.kind_of_set(folder) or EngineRank, folder)
    records.require_set(ranks, folder)
    return ranks


def _opener(folder: Path, ranks: dict[int, EngineRank] | dict[int, GraphsRank]) -> Opener:
    first = ranks[0]
    if isinstance(first, GraphsRank):
        if first.precision == "bf16":
            raise LoadError(f"{folder} holds graphs in bf16, in which ONNX Runtime does not compute.", hint="Build them for TensorRT, or export with --precision fp32 or fp16.")
        return OrtOpener(folder, ranks)
    try:
        return find_backend(first.backend).open(folder, ranks)
    except UsageError as cause:  # of a folder that is at fault, not of the command
        raise LoadError(f"{folder} holds engines that cannot be run: {cause.message}", hint=cause.hint) from cause


def _seat(folder: Path, record: EngineRank | GraphsRank, threads: int, library: dict[str, str]) -> Seat:
    if isinstance(record, GraphsRank):
        if record.weights is None:
            raise LoadError(f"{folder} holds graphs without weights.", hint="Export again without --graphs-only.")
        assembly = record.whole if record.plan.tensor == 1 else record.segments
        return Seat(record.rank, folder, assembly, {"config": AS_WRITTEN}, threads)
    return Seat(record.rank, folder, record.assembly, record.options | library, threads)


def _library(folder: Path, ranks: dict[int, EngineRank] | dict[int, GraphsRank], kind: Kind, given: Path | None) -> dict[str, str]:
    """The option that names the library of kernels, where the engines need one; it is the one that they were built with, to the byte."""
    recorded = (getattr(record, "options", {}).get("plugins") for _, record in sorted(ranks.items()))
    needed = dict.fromkeys((wanted["library"], wanted["version"], wanted["sha256"]) for wanted in recorded if wanted)
    if not needed:
        if given:
            raise UsageError(f"{folder} holds engines that need no library of kernels, but {given} is given.", hint="Leave --plugins out.")
        return {}
    library = given or folder / next(iter(needed))[0]
    for name, version, sha256 in needed:
        if problem := problem_of(library, kind, version, sha256):
            raise LoadError(
                f"{library} {problem}; {folder} holds engines that were built with {name}, plugins of version {version}, sha256 {sha256[:SHOWN]}.",
                hint="Give that library by --plugins FILE, or build the engines again with `moetrt build --plugins` and the library at hand.",
            )
    return {LIBRARY: str(library.resolve())}
