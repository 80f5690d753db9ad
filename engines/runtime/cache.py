"""The latent cache of a chain: one buffer a layer and rank, read and written in place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from exporter.plan.manifest import Assembly
from exporter.plan.signature import BATCH, CONTEXT, Tensor

from .fuse import state_name
from .memory import Memory
from .ports import States, shape_of

STEP = 64
"""Cache lengths are multiples of this, so that requests of like length share a buffer."""


@dataclass(frozen=True)
class Cache:
    """Buffers of all ranks, for ``batch`` rows of ``context`` positions."""

    batch: int
    context: int
    ranks: dict[int, States]
    """Rank → state input → buffer."""
    memory: Memory = field(repr=False, compare=False)
    whole: States | None = field(default=None, repr=False, compare=False)
    """Of a view: ``all_ranks`` of the cache that it lies in."""
    views: dict[tuple[int, int], "Cache"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def all_ranks(self) -> States:
        """The buffers of all ranks, under the names that they have in a joined graph."""
        return States(((state_name(rank, name), buffer) for rank, states in self.ranks.items() for name, buffer in states.items()), self.whole)

    def rows(self, start: int, stop: int) -> "Cache":
        """Rows ``start`` to ``stop``, over the same memory. Made once and kept, so that what is bound to it stays bound."""
        if (start, stop) == (0, self.batch):
            return self
        if (start, stop) not in self.views:
            ranks = {rank: States(((name, self.memory.rows(buffer, start, stop)) for name, buffer in states.items()), states.whole) for rank, states in self.ranks.items()}
            self.views[start, stop] = Cache(stop - start, self.context, ranks, self.memory, self.all_ranks.whole)
        return self.views[start, stop]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first ``positions`` latents of one row over another's."""
        for buffer in _buffers(self):
            self.memory.copy(buffer, buffer, source, target, positions)

    def take(self, shorter: "Cache", rows: int) -> None:
        """Copy the first ``rows`` rows of a shorter cache of the same chain."""
        for buffer, given in zip(_buffers(self), _buffers(shorter), strict=True):
            for row in range(rows):
                self.memory.copy(given, buffer, row, row, shorter.context)


def _buffers(cache: Cache) -> Iterator[Any]:
    """Every buffer, in an order that caches of one chain share. *Shape:* ``(batch, context, latent)``"""
    return (buffer for _, states in sorted(cache.ranks.items()) for _, buffer in sorted(states.items()))


def allocate_cache(assemblies: dict[int, Assembly], batch: int, context: int, memory: Memory) -> Cache:
    """Zeroed buffers: what was never written must be finite, since its weight of zero is multiplied all the same."""
    sizes = {BATCH: batch, CONTEXT: context}
    ranks = {rank: States((tensor.name, memory.zeros(rank, shape_of(tensor, sizes), tensor.dtype)) for tensor in _states(assembly)) for rank, assembly in assemblies.items()}
    return Cache(batch, context, ranks, memory)


def grows(assemblies: dict[int, Assembly]) -> bool:
    """Whether engines take caches of any length; False: of theirs alone."""
    return any(CONTEXT in tensor.shape for assembly in assemblies.values() for tensor in _states(assembly))


def _states(assembly: Assembly) -> Iterator[Tensor]:
    return (tensor for signature in assembly.signatures.values() for tensor in signature.state_inputs)


def cache_length(tokens: int, most: int) -> int:
    """Positions to allocate for ``tokens``: rounded up, but not beyond ``most``."""
    return min(-(-tokens // STEP) * STEP, most)
