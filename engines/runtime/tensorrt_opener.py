"""How sets of TensorRT's and TensorRT-RTX's engines are opened: a device for each rank, and what cannot run in one process refused."""

from pathlib import Path

from exporter.errors import LoadError
from exporter.plan.manifest import EngineRank
from exporter.plan.schedule import AllGather, AllReduce

from ..backends.tensorrt import library
from .device import DeviceMemory, devices
from .openers import Seat
from .ports import hosted
from .session import LIBRARY
from .tensorrt_session import TensorRtSession


class TensorRtOpener:
    """Ranks have the devices in turn, and share them where there are fewer.

    :raises LoadError: there is no device, or ranks would meet inside their engines.
    """

    joins = cuts = False

    def __init__(self, folder: Path, ranks: dict[int, EngineRank]) -> None:
        first = ranks[min(ranks)]
        self.backend = first.backend
        _require_apart(folder, first)
        library(self.backend)
        self.devices, why = devices()
        if not self.devices:
            raise LoadError(f"{folder} holds engines of {self.backend}, which run on a CUDA device; there is none here: {why or 'none is visible'}.", hint="`moetrt doctor` says what is there; --backend ort builds for the CPU.")
        self.memory = DeviceMemory(self.device_of)

    def device_of(self, rank: int) -> int:
        return rank % self.devices

    def open(self, seat: Seat) -> dict[str, TensorRtSession]:
        assembly, plugins = seat.assembly, seat.options.get(LIBRARY)
        wanted, device, given = frozenset(hosted(assembly)), self.device_of(seat.rank), Path(plugins) if plugins and seat.options.get("plugins") else None
        return {name: TensorRtSession(self.backend, seat.folder / file, assembly.signatures[name], device, wanted, given) for name, file in assembly.graphs.items()}


def _require_apart(folder: Path, record: EngineRank) -> None:
    """Ranks that meet inside their engines wait for each other in ``set_communicator``, which keeps Python's other threads from coming."""
    if record.plan.tensor == 1 or any(isinstance(step, AllReduce | AllGather) for step in record.assembly.steps):
        return
    raise LoadError(
        f"{folder} holds engines of {record.plan.tensor} tensor ranks, which meet inside {record.backend}; Python cannot run them: giving a rank its NCCL communicator blocks the whole process until all ranks have theirs.",
        hint="Run them by moetrt-run (docs/cpp.md), or build with --segments, or export with --tensor 1.",
    )
