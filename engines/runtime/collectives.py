"""Collectives among the threads of one process: deterministic, and released together when one rank fails."""

import queue
import threading
from typing import TYPE_CHECKING, Any

from exporter.plan.parallel import Plan

if TYPE_CHECKING:
    import numpy as np

POLL_SECONDS = 0.2
"""How long a rank waits for its predecessor before it looks whether the chain was aborted."""


class Aborted(Exception):
    """Another rank failed; its exception is the one that counts."""


class Collectives:
    """What the ranks of a plan share. Each rank calls from its own thread.

    Sums run in rank order whatever the timing, so that results are the same from run to run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.barriers = [threading.Barrier(plan.tensor) for _ in range(plan.pipeline)]
        self.slots: list[list[Any]] = [[None] * plan.tensor for _ in range(plan.pipeline)]
        self.mail: list[queue.Queue] = [queue.Queue() for _ in range(plan.ranks)]
        self.failed = threading.Event()

    def all_reduce(self, rank: int, value: "np.ndarray") -> "np.ndarray":
        """The sum over the stage's tensor ranks, in float32, in the dtype of ``value``."""
        import numpy as np

        parts = self._share(rank, value)
        total = parts[0].astype(np.float32, copy=True)
        for part in parts[1:]:
            total += part
        self._leave(rank)
        return total.astype(value.dtype, copy=False)

    def all_gather(self, rank: int, value: "np.ndarray") -> "np.ndarray":
        """The stage's parts side by side along the last axis, in rank order."""
        import numpy as np

        joined = np.concatenate(self._share(rank, value), axis=-1)
        self._leave(rank)
        return joined

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
        for barrier in self.barriers:
            barrier.abort()

    def _share(self, rank: int, value: Any) -> list[Any]:
        stage, index = divmod(rank, self.plan.tensor)
        self.slots[stage][index] = value
        self._wait(stage)
        return self.slots[stage]

    def _leave(self, rank: int) -> None:
        """Nobody overwrites a slot before all have read it."""
        self._wait(rank // self.plan.tensor)

    def _wait(self, stage: int) -> None:
        try:
            self.barriers[stage].wait()
        except threading.BrokenBarrierError:
            raise Aborted from None
