"""Every hash that a record states, recomputed; what differs is named, the first in full."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan.manifest import MANIFEST, FileStamp

from .screen import cut

CHUNK = 8 << 20
"""Bytes hashed at a time."""


@dataclass(frozen=True)
class Claim:
    """A record says that a file has a hash."""

    path: Path
    sha256: str
    by: Path
    """The record."""
    what: str
    """What such files are, for the count of what was verified."""

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


def claims_of(folder: Path, stamps: dict[str, FileStamp], by: Path, what: str) -> list[Claim]:
    return [Claim(folder / name, stamp.sha256, by, what) for name, stamp in stamps.items()]


@dataclass(frozen=True)
class Difference:
    """A file that is another than a record states."""

    path: Path
    told: str
    """What it does not have."""

    def __str__(self) -> str:
        return f"{self.path} does not have {self.told}"


def verify(claims: Iterable[Claim], advance: Callable[[int], Any] = lambda count: None) -> tuple[Counter[str], list[Difference]]:
    """Read every file and hold it against what its record says.

    A file that several records name, or that is there under several names (weights that engines share with their graphs), is read once.

    :param advance: called with each number of bytes that were read.
    :returns: what was read → how many; and what differs, in that order.
    """
    known: dict[tuple[int, int], str] = {}
    done: Counter[str] = Counter()
    differing: list[Difference] = []
    for claim in claims:
        seen = claim.path.stat()
        same = (seen.st_dev, seen.st_ino)
        if same in known:
            advance(seen.st_size)
        else:
            known[same] = sha256_of(claim.path, advance)
        if known[same] != claim.sha256:
            differing.append(Difference(claim.path, f"the sha256 that {claim.by} states: {known[same][:12]}, not {claim.sha256[:12]}"))
        done[claim.what] += 1
    return done, differing


def refusal(differing: Sequence[Difference]) -> str:
    """One message of all files that differ: the first in full."""
    first, *rest = differing
    return f"{first}; {len(rest)} more differ from what is stated: {cut(one.path for one in rest)}." if rest else f"{first}."


def sha256_of(path: Path, advance: Callable[[int], Any] = lambda count: None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def stamped(path: Path) -> Claim | None:
    """What a manifest beside a lone file says of it; None where there is none, or none that lists it.

    :raises LoadError: the file has another size.
    """
    shard = path.name.removesuffix(path.suffix) + ".manifest.json"
    for record in (path.parent / MANIFEST, path.parent / shard):
        try:
            stamp = files.read_json(record).get("files", {})[path.name]
            claim, size = Claim(path, stamp["sha256"], record, "files"), stamp["bytes"]
        except (LoadError, AttributeError, KeyError, TypeError):
            continue
        if size != claim.bytes:
            raise LoadError(f"{path} has {claim.bytes} bytes, {record} says {size}.", hint=f"The file is damaged or stale; make {path.parent} again.")
        return claim
    return None
