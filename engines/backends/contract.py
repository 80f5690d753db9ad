"""What a backend is to those who build: capabilities as data, and a function that fills a rank's folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Assembly, EngineRank, FileStamp, GraphsRank, Lowering

if TYPE_CHECKING:
    from ..runtime.openers import Opener

Progress = Callable[[str, float], None]
"""Called with what is being worked on and the part of it that is done, 0 to 1."""


def silent(what: str, part: float) -> None:
    """No progress."""


@dataclass(frozen=True)
class RankBuild:
    """One rank to be built."""

    source: Path
    """The rank's folder of portable graphs."""
    record: GraphsRank
    folder: Path
    """To be filled: the caller puts it in its place, with a manifest, when all went well."""
    max_context: int
    """Cache positions a row."""
    max_batch: int
    compute_capabilities: tuple[str, ...] = ()
    """GPU generations to compile for, such as ``8.9``; the backend's default where none is given."""
    fast: bool = False
    """Whether kernels may be taken that round in their own way."""
    segments: bool = False
    """Whether a rank is to be cut in its segments."""
    plugins: Path | None = None
    """The library of our own kernels, where ops are to be those."""
    progress: Progress = field(default=silent, compare=False)


@dataclass(frozen=True)
class RankEngines:
    """What a backend made of a rank; its files lie in the folder."""

    assembly: Assembly
    options: dict[str, Any]
    """What sessions are opened with, and what was built for."""
    lowerings: tuple[Lowering, ...]
    refusals: dict[str, str] = field(default_factory=dict)
    """What the backend would not do → its reason."""
    stamps: dict[str, FileStamp] = field(default_factory=dict)
    """Files whose hash is known from their writing: they are not read again for it."""


@dataclass(frozen=True)
class Backend:
    """A backend by its parts. Importing its module needs nothing installed; ``tools``, ``build`` and ``open`` do."""

    capabilities: Capabilities
    tools: Callable[[], dict[str, str]]
    """Versions of the libraries that build. :raises BuildError: they cannot be imported; says how to install them."""
    build: Callable[[RankBuild], RankEngines]
    open: "Callable[[Path, dict[int, EngineRank]], Opener]"
    """Of a folder and the records of its ranks: what opens its sessions. :raises LoadError: they cannot run here."""
    takes_compute_capabilities: bool = False
    takes_segments: bool = False
    """Whether it can be asked for a rank in segments, where it has whole ones."""
    with_plugins: Callable[[Capabilities], Capabilities] | None = None
    """What it can do with the library of our own kernels at hand; None where it takes none."""
    substitutes: bool = False
    """Whether it has faster kernels that do not compute as written."""
    derives: bool = False
    """Whether it makes the tensors that rewrites derive from stored ones."""
    libraries: tuple[tuple[str, ...], ...] = ()
    """What it imports to build and to run; of several names in one place the first that works."""
    runs_with: tuple[tuple[str, ...], ...] = ()
    """What it imports to run alone."""
    generations: tuple[str, ...] = ()
    """GPU generations that its engines run on, in their order, and all beyond the last; empty where it has no list."""
    needs_gpu_to_build: bool = False
    provider: str | None = None
    """ONNX Runtime's execution provider, where that is what runs the engines."""
