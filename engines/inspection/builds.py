"""A folder that holds several things: a build, or a folder of builds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from exporter.errors import LoadError, MoetrtError

from .found import Found, Inspection, damaged
from .screen import cut

DEPTH = 3
"""Folders below the one asked for that are looked into."""

Reader = Callable[[Path], Found]


def read(path: Path, kind_of: Callable[[Path], Reader | None]) -> Found:
    """Sum up what lies in ``path``; what is damaged is told with its reason, and refused when verifying.

    :param kind_of: the reader of a path, None where nothing is known of it.
    """
    held = list(_held(path, kind_of, DEPTH))
    if not held:
        raise LoadError(f"{path} holds nothing that moetrt knows.", hint="Give a folder of graphs, engines, shards or a checkpoint, a calibration table or a report.")
    if len(held) == 1:
        return held[0][1](held[0][0])
    found = [_tried(one, reader) for one, reader in held]
    others = _others(path, [one for one, _ in held])
    inspection = Inspection(
        path=str(path),
        kind="build",
        line=f"a folder of {len(found)}: {cut(dict.fromkeys(one.inspection.kind for one in found), 3)}",
        facts={"holds": f"{len(found)} things" + (f", and beside them {cut(others)}" if others else "")},
        contents=tuple(one.inspection for one in found),
    )
    return Found(inspection, *(tuple(item for one in found for item in getattr(one, part)) for part in ("claims", "flaws", "unproven")))


def _others(path: Path, held: list[Path]) -> list[str]:
    """What lies beside: of pages, the data beside them are listed."""
    covered = {*held, *(parent for one in held for parent in one.parents), *(one.with_suffix(".html") for one in held)}
    return sorted(one.name for one in path.iterdir() if not one.name.startswith(".") and one not in covered)


def _held(path: Path, kind_of: Callable[[Path], Reader | None], depth: int) -> Iterator[tuple[Path, Reader]]:
    for one in sorted(path.iterdir()):
        if one.name.startswith("."):
            continue
        reader = kind_of(one)
        if reader:
            yield one, reader
        elif one.is_dir() and not one.is_symlink() and depth > 1:
            yield from _held(one, kind_of, depth - 1)


def _tried(path: Path, reader: Reader) -> Found:
    try:
        found = reader(path)
    except (MoetrtError, OverflowError) as error:
        reason = getattr(error, "message", f"{path} states numbers that nothing has")
        return Found(damaged(path, reason), flaws=(reason.removesuffix("."),))
    return replace(found, inspection=replace(found.inspection, path=str(path)))
