"""Collectives among the threads of one process: deterministic, and released together when one rank fails."""

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from exporter.plan.parallel import Plan

if TYPE_CHECKING:
    import numpy as np

POLL_SECONDS = 0.2
"""How long a rank waits for its predecessor before it looks whether the chain was aborted."""
SPINS = 20000
"""Turns that a rank gives way before it sleeps between looks: some milliseconds, longer than ranks of like work are apart."""
NAP_SECONDS = 1e-4


class Aborted(Exception):
    """Another rank failed; its exception is the one that counts."""


class Collectives:
    """What the ranks of a plan share. Each rank calls from its own thread.

    Sums run in rank order whatever the timing, so that results are the same from run to run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls = [0] * plan.ranks
        """Collectives that each rank has come to."""
        self.slots: tuple[list[Any], list[Any]] = ([None] * plan.ranks, [None] * plan.ranks)
        """Parts by rank, of even calls and of odd ones."""
        self.mail: list[queue.Queue] = [queue.Queue() for _ in range(plan.ranks)]
        self.failed = threading.Event()

    def all_reduce(self, rank: int, value: "np.ndarray") -> "np.ndarray":
        """The sum over the stage's tensor ranks, in float32, in the dtype of ``value``."""
        import numpy as np

        first, *rest = self._share(rank, value)
        total = first.astype(np.float32)
        for part in rest:
            total += part
        return total.astype(value.dtype, copy=False)

    def all_gather(self, rank: int, value: "np.ndarray") -> "np.ndarray":
        """The stage's parts side by side along the last axis, in rank order."""
        import numpy as np

        return np.concatenate(self._share(rank, value), axis=-1)

    def send(self, rank: int, values: dict[str, Any]) -> None:
        """Hand values to the same tensor rank of the next stage."""
        self.mail[rank + self.plan.tensor].put(values)

    def receive(self, rank: int) -> dict[str, Any]:
        """What the same tensor rank of the stage before sent; waits for it."""
        while not self.failed.is_set():
            try:
                return self.mail[rank].get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
        raise Aborted

    def abort(self) -> None:
        """Let every waiting rank go."""
        self.failed.set()

    def _share(self, rank: int, value: Any) -> list[Any]:
        """The parts of all ranks of the stage, when all have come.

        A rank comes to the call after next only when all have come to the next, and so have read this one's parts: two sets of
        slots do. Ranks wait awake, since they come within microseconds of each other and waking a thread takes tens of them.
        """
        call = self.calls[rank] + 1
        slots, peers = self.slots[call % 2], self._stage(rank)
        slots[rank] = value
        self.calls[rank] = call
        looks = 0
        while any(self.calls[peer] < call for peer in peers):
            if self.failed.is_set():
                raise Aborted
            looks += 1
            time.sleep(0 if looks < SPINS else NAP_SECONDS)
        return [slots[peer] for peer in peers]

    def _stage(self, rank: int) -> range:
        first = rank - rank % self.plan.tensor
        return range(first, first + self.plan.tensor)
