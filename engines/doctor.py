"""What ``moetrt doctor`` says: what is installed here, which backends build and run, and what keeps the others from it."""

import os
import platform
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from exporter import __version__

from . import probe
from .backends import BACKENDS
from .backends.contract import Backend
from .bench.machine import cpu
from .probe import Gpu, Library, Nvidia

NEEDED = [names for backend in BACKENDS.values() for names in (*backend.libraries, *backend.runs_with)]
LIBRARIES = tuple(dict.fromkeys([*(name for names in NEEDED for name in names), "torch", "onnxscript", "transformers", "tokenizers", "polygraphy"]))
"""What is looked for, by its name as a module: libraries of backends, export, ``compare`` and text."""
CPU_PROVIDER = "CPUExecutionProvider"
WIDTH = 80
"""Cells of the terminal that the words are set for."""
LONGEST = 120
"""Letters of a library's own words that are shown; the JSON has all."""


@dataclass(frozen=True)
class Machine:
    moetrt: str
    python: str
    os: str
    cpu: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps a backend from building or running here."""

    stops: tuple[str, ...]
    """``build``, ``run`` or both."""
    problem: str
    remedy: str
    """What would work."""


@dataclass(frozen=True)
class Ability:
    """What a backend can do here."""

    builds: bool
    runs: bool
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The keys of ``moetrt doctor --json``."""

    machine: Machine
    nvidia: Nvidia
    libraries: dict[str, Library]
    backends: dict[str, Ability]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """In words, at most 80 cells wide."""
        one, nvidia = self.machine, self.nvidia
        gpus = "; ".join((f"{count} × " if count > 1 else "") + _said(gpu) for gpu, count in Counter(nvidia.gpus).items())
        lines = [
            f"moetrt {one.moetrt}, Python {one.python}, {one.os}",
            *_wrapped("cpu  ", f"{one.cpu}, {one.memory_bytes / 1e9:.0f} GB of memory"),
            *_wrapped("gpu  ", f"{gpus}; driver {nvidia.driver}" if gpus else f"none: {nvidia.problem}"),
            *_in_columns(self.libraries),
            f"{'backend':13}{'builds':7}{'runs':5}because",
        ]
        known = {(library.problem or "").rstrip(".") for library in self.libraries.values()} - {""}
        for name, able in self.backends.items():
            begin = f"{name:13}{_yes(able.builds):7}{_yes(able.runs):5}"
            told = [line for one in able.obstacles for line in _reason(one, len(begin), known)] or [begin]
            lines += [(begin + told[0][len(begin) :]).rstrip(), *told[1:]]
        return "\n".join([*lines, *(line for note in self.notes for line in _wrapped("note ", note))])


def diagnose(advance: Callable[[int], None] = lambda count: None) -> Diagnosis:
    """Look at this machine: some seconds, for every library is imported.

    :param advance: called with 1 after each of ``LIBRARIES``.
    """
    libraries, nvidia = import_all(advance), probe.find_nvidia()
    return judge(machine(), nvidia, libraries, probe.open_on)


def judge(here: Machine, nvidia: Nvidia, libraries: Mapping[str, Library], opens: Callable[[str], str | None]) -> Diagnosis:
    """What follows from what was found.

    :param opens: tries a provider of ONNX Runtime and says why it does not open; asked only where a GPU is needed and there.
    """
    abilities = {name: _ability(backend, nvidia, libraries, opens) for name, backend in BACKENDS.items()}
    return Diagnosis(here, nvidia, dict(libraries), abilities, tuple(_notes(nvidia)))


def import_all(advance: Callable[[int], None]) -> dict[str, Library]:
    def one(name: str) -> Library:
        found = probe.try_import(name)
        advance(1)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(LIBRARIES, pool.map(one, LIBRARIES), strict=True))


def machine() -> Machine:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(__version__, platform.python_version(), system, cpu(), os.cpu_count() or 1, probe.memory_bytes())


def _ability(backend: Backend, nvidia: Nvidia, libraries: Mapping[str, Library], opens: Callable[[str], str | None]) -> Ability:
    found = tuple(_obstacles(backend, nvidia, libraries, opens))
    stopped = {stage for one in found for stage in one.stops}
    return Ability("build" not in stopped, "run" not in stopped, found)


def _obstacles(backend: Backend, nvidia: Nvidia, libraries: Mapping[str, Library], opens: Callable[[str], str | None]) -> Iterator[Obstacle]:
    able = backend.capabilities
    missing = [names for names in backend.libraries if not any(libraries[name].works for name in names)]
    install = f"pip install 'moetrt[{able.extra}]'"
    yield from _missing(install, missing, libraries, ("build", "run"))
    yield from _missing(install, [names for names in backend.runs_with if not any(libraries[name].works for name in names)], libraries, ("run",))
    gpu = tuple(stage for stage, needs in (("build", backend.needs_gpu_to_build), ("run", able.needs_gpu_to_run)) if needs)
    if gpu and not nvidia.gpus:
        yield Obstacle(gpu, (nvidia.problem or "no GPU").partition(" (")[0], "an NVIDIA GPU is needed")
    elif backend.generations and not any(_is_of(backend.generations, gpu.compute_capability) for gpu in nvidia.gpus):
        here = ", ".join(sorted({gpu.compute_capability for gpu in nvidia.gpus}))
        yield Obstacle(("run",), f"no GPU here is of generation {', '.join(backend.generations)} or later, but {here}", "choose another backend")
    if backend.provider and ("onnxruntime",) not in missing:
        yield from _provider(backend, nvidia, libraries["onnxruntime"], opens)


def _is_of(generations: tuple[str, ...], capability: str) -> bool:
    major, minor = map(int, capability.split("."))
    last = tuple(map(int, generations[-1].split(".")))
    return capability in generations or (major, minor) > last


def _missing(install: str, missing: list[tuple[str, ...]], libraries: Mapping[str, Library], stops: tuple[str, ...]) -> Iterator[Obstacle]:
    broken = [name for names in missing for name in names if libraries[name].problem != probe.ABSENT]
    for name in broken:
        yield Obstacle(stops, f"{name} cannot be imported: {libraries[name].problem}".rstrip("."), "reinstall it")
    absent = [" or ".join(names) for names in missing if not set(names) & set(broken)]
    if absent:
        yield Obstacle(stops, f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed", install)


def _provider(backend: Backend, nvidia: Nvidia, library: Library, opens: Callable[[str], str | None]) -> Iterator[Obstacle]:
    wanted, install = backend.provider, f"pip install 'moetrt[{backend.capabilities.extra}]'"
    if wanted not in library.providers:
        yield Obstacle(("run",), f"onnxruntime {library.version} has no {wanted}", f"pip uninstall onnxruntime; {install}")
    elif nvidia.gpus and wanted != CPU_PROVIDER and (problem := opens(wanted)):
        yield Obstacle(("run",), f"{wanted} does not open: {problem}".rstrip("."), f"its CUDA libraries may be missing, {install} brings them")


def _notes(nvidia: Nvidia) -> Iterator[str]:
    found = probe.installed(probe.ORT_DISTRIBUTIONS)
    if len(found) > 1:
        yield f"{' and '.join(found)} are both installed and overwrite each other: uninstall both, then install one."
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and nvidia.gpus:
        yield f"CUDA_VISIBLE_DEVICES is {visible!r}: other GPUs are hidden from what runs here."


def _said(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.memory_bytes / 1e9:.0f} GB, compute capability {gpu.compute_capability}"


def _reason(one: Obstacle, indent: int, known: set[str]) -> list[str]:
    """Lines of one obstacle; the words of a library that were shown already are not shown again."""
    head, _, words = one.problem.partition(": ")
    problem = f"{head}, as above" if words in known else textwrap.shorten(one.problem, LONGEST)
    return _wrapped(" " * indent, f"{problem}: {one.remedy}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _wrapped(begin: str, text: str) -> list[str]:
    """Lines of at most ``WIDTH`` cells, those after the first indented as far as ``begin`` is long."""
    return textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin), break_on_hyphens=False)


def _in_columns(libraries: Mapping[str, Library]) -> list[str]:
    """Versions two a line, then what cannot be imported; what is absent in one line."""
    cells = [f"{name:23}{one.version}" for name, one in libraries.items() if one.works]
    rows = [f"{left:40}{right}".rstrip() for left, right in zip(cells[::2], [*cells[1::2], ""], strict=False)]
    broken = {name: textwrap.shorten(one.problem, LONGEST) for name, one in libraries.items() if one.problem not in (None, probe.ABSENT)}
    spared = {name for names in NEEDED if any(libraries[name].works for name in names) for name in names}
    absent = ", ".join(name for name, one in libraries.items() if one.problem == probe.ABSENT and name not in spared)
    return [*rows, *(line for name, why in broken.items() for line in _wrapped(f"{name:23}", why)), *(_wrapped(f"{'not installed':23}", absent) if absent else [])]
