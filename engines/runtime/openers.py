"""What opens a backend's engines, and how ONNX Runtime's are opened."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from exporter.plan.manifest import Assembly, EngineRank, GraphsRank

from .cuda import CapturingSession, captures
from .memory import Memory, OrtDeviceMemory, OrtMemory
from .ports import hosted
from .session import Session, device_of

APART = {"session.intra_op.allow_spinning": "0"}
"""For graphs that run one after another: a pool that goes on spinning after its graph would keep the cores from the next."""


@dataclass(frozen=True)
class Seat:
    """One rank and what its sessions are opened with."""

    rank: int
    folder: Path
    assembly: Assembly
    options: dict[str, Any]
    threads: int


class Opener(Protocol):
    """How a backend's engines are opened."""

    memory: Memory
    joins: bool
    """Whether the ranks of one process can run as one graph of ONNX Runtime."""
    cuts: bool
    """Whether a segment can be taken out of a rank's graph and run alone."""

    def open(self, seat: Seat) -> dict[str, Any]:
        """A session for each graph of a rank: ``run(values, states)`` gives results by name."""


class OrtOpener:
    """Sessions of ONNX Runtime, on a CPU or on CUDA."""

    cuts = True

    def __init__(self, folder: Path, ranks: dict[int, EngineRank] | dict[int, GraphsRank]) -> None:
        device = device_of(getattr(ranks[min(ranks)], "options", {}))
        self.joins = device == "cpu"
        self.memory = OrtMemory() if self.joins else OrtDeviceMemory(device)

    def open(self, seat: Seat) -> dict[str, Session]:
        options, assembly = seat.options, seat.assembly
        if len(assembly.graphs) > 1:
            options = options | {"config": options.get("config", {}) | APART}
        opened = CapturingSession if captures(options) else partial(Session, hosted=frozenset(hosted(assembly)))
        return {name: opened(seat.folder / file, assembly.signatures[name], seat.threads, options) for name, file in assembly.graphs.items()}
