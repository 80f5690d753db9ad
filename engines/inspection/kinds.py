"""What is at a path, and who reads it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import LoadError, MoetrtError
from exporter.plan import files
from exporter.progress import bar

from . import builds, checkpoints, graph_files, reports, sets, shards, tables
from .builds import Reader
from .found import Found, Inspection, Unverified, damaged
from .hashes import refusal, stamped, verify
from .screen import megabytes

KINDS: dict[str, Reader] = {
    "graphs": sets.read,
    "engines": sets.read,
    "graphs-rank": sets.read,
    "engine-rank": sets.read,
    "shards-rank": shards.read,
    "calibration": tables.read,
    "quantization-report": reports.read_quantization,
    "comparison": reports.read_comparison,
    "replay": reports.read_replay,
    "joined": graph_files.read_joined,
}
"""``kind`` of a JSON record → its reader."""
UNSTAMPED: tuple[tuple[Callable[[Any], bool], Reader], ...] = (
    (reports.is_comparison, reports.read_comparison),
    (reports.is_bench, reports.read_bench),
    (lambda data: isinstance(data, dict) and "model_type" in data, checkpoints.read),
    (reports.is_layers, reports.read_layers),
)
"""JSON without a ``kind`` → its reader, the first that knows it."""
FOLDERS: dict[str, Reader] = {
    "rank-*/manifest.json": sets.read,
    "manifest.json": sets.read,
    reports.REPLAY: reports.read_replay,
    shards.MANIFESTS: shards.read,
    "config.json": checkpoints.read,
}
"""File in a folder → the folder's reader, the first that is there."""
SUFFIXES: dict[str, Reader] = {".safetensors": checkpoints.read_safetensors, ".onnx": graph_files.read, ".html": reports.read_page}
"""Ending of a file → its reader."""
CHANGED = "What differs was changed or made anew since; make again what is older."
INCOMPLETE = "Make again what is older or incomplete; without --verify, inspect shows what is there."
HINT = f"Known are folders of graphs, engines, shards and checkpoints, JSON of the kinds {', '.join(KINDS)}, benchmarks, .safetensors and .onnx."


def inspect(path: Path, verify: bool = False, quiet: bool = True) -> Inspection:
    """Sum up ``path``.

    :param verify: recompute every hash that a record states.
    :param quiet: no progress on stderr while that is done.
    :raises MoetrtError: it is none of ours, incomplete, or damaged; when verifying always ``Unverified``.
    """
    return _verified(path, quiet) if verify else read(path).inspection


def read(path: Path) -> Found:
    """What is at ``path``, and what there is to verify of it."""
    try:
        return _read(path)
    except OverflowError as cause:  # JSON may hold numbers of any length
        raise LoadError(f"{path} states numbers that nothing has: {cause}.", hint="It is damaged or was edited; make it anew.") from None


def _read(path: Path) -> Found:
    if path.is_dir():
        reader = kind_of(path)
        return reader(path) if reader else builds.read(path, kind_of)
    reader = _reader_of_file(path)
    if reader is None:
        raise LoadError(f"{path} is neither a folder nor a file that moetrt knows.", hint=HINT)
    return reader(path)


def kind_of(path: Path) -> Reader | None:
    """The reader of what is at ``path``, as far as a glance tells; None where it is nothing of ours, or a folder of several things."""
    if path.is_dir():
        return next((reader for marker, reader in FOLDERS.items() if next(path.glob(marker), None)), None)
    if path.suffix == ".html":
        return None  # beside its JSON, which is listed
    if path.suffix == ".json":
        try:
            return _reader_of_json(path)
        except MoetrtError as error:
            return _refusing(error) if path.stem in ("calibration", "report", "bench", "compare", "manifest") else None
    return SUFFIXES.get(path.suffix)


def _refusing(error: MoetrtError) -> Reader:
    """For what is damaged and, by its name, ours."""

    def refuse(path: Path) -> Found:
        raise error

    return refuse


def _reader_of_file(path: Path) -> Reader | None:
    if path.suffix == ".json":
        reader = _reader_of_json(path)
    else:
        reader = SUFFIXES.get(path.suffix)
    claim = stamped(path)
    if reader is None:
        return _stamped if claim else None
    return reader if claim is None else lambda one: replace(found := reader(one), claims=(*found.claims, claim))


def _reader_of_json(path: Path) -> Reader | None:
    data = files.read_json(path)
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(kind, str):
        if kind not in KINDS:
            raise LoadError(f"{path} is of the unknown kind {kind!r}.", hint=HINT)
        return KINDS[kind]
    return next((reader for knows, reader in UNSTAMPED if knows(data)), None)


def _stamped(path: Path) -> Found:
    """A file that tells nothing itself, but that a manifest beside it lists: an engine, a tokenizer."""
    claim, size = stamped(path), path.stat().st_size
    facts = {"bytes": f"{size:,}", "listed by": str(claim.by), "sha256": claim.sha256}
    return Found(Inspection(str(path), "file", f"{path.name}: {megabytes(size)}", facts, {"bytes": size, "sha256": claim.sha256, "by": str(claim.by)}), (claim,))


def _verified(path: Path, quiet: bool) -> Inspection:
    try:
        found = read(path)
        with bar("verify", sum(claim.bytes for claim in found.claims), quiet) as advance:
            done, differing = verify(found.claims, advance)
    except (MoetrtError, OSError) as error:
        message = error.message if isinstance(error, MoetrtError) else f"{error.filename or path}: {error.strerror or error}."
        raise Unverified(message, getattr(error, "hint", None), replace(damaged(path, message), problems=(message,))) from error
    inspection = replace(found.inspection, unverified=tuple(dict.fromkeys(found.unproven)))
    if differing or found.flaws:
        message = refusal(differing) if differing else f"{found.flaws[0]}."
        raise Unverified(message, CHANGED if differing else INCOMPLETE, replace(inspection, problems=tuple(f"{one}." for one in (*differing, *found.flaws))))
    return replace(inspection, verified=bool(found.claims), verified_files=dict(done))
