"""The latent cache of a chain: one buffer a layer and rank, read and written in place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exporter.errors import RunError
from exporter.plan.manifest import Assembly
from exporter.plan.signature import BATCH, CONTEXT

from .fuse import state_name
from .session import value_of, zeros

if TYPE_CHECKING:
    import numpy as np

STEP = 64
"""Cache lengths are multiples of this, so that requests of like length share a buffer."""


@dataclass(frozen=True)
class Cache:
    """Buffers of all ranks, for ``batch`` rows of ``context`` positions."""

    batch: int
    context: int
    ranks: dict[int, dict[str, Any]]
    """Rank → state input → buffer."""
    within: dict[int, dict[str, Any]] | None = field(default=None, repr=False, compare=False)
    """Of a view: the buffers that it lies in, which live as long as it does."""
    views: dict[tuple[int, int], "Cache"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def all_ranks(self) -> dict[str, Any]:
        """The buffers of all ranks, under the names that they have in a joined graph."""
        return {state_name(rank, name): buffer for rank, states in self.ranks.items() for name, buffer in states.items()}

    def rows(self, start: int, stop: int) -> "Cache":
        """Rows ``start`` to ``stop``, over the same memory. Made once and kept, so that what is bound to it stays bound."""
        if (start, stop) == (0, self.batch):
            return self
        if (start, stop) not in self.views:
            ranks = {rank: {name: value_of(_array(buffer)[start:stop]) for name, buffer in states.items()} for rank, states in self.ranks.items()}
            self.views[start, stop] = Cache(stop - start, self.context, ranks, self.within or self.ranks)
        return self.views[start, stop]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first ``positions`` latents of one row over another's."""
        for array in _arrays(self):
            array[target, :positions] = array[source, :positions]

    def take(self, shorter: "Cache", rows: int) -> None:
        """Copy the first ``rows`` rows of a shorter cache of the same chain."""
        for array, given in zip(_arrays(self), _arrays(shorter), strict=True):
            array[:rows, : shorter.context] = given[:rows]


def _arrays(cache: Cache) -> Iterator["np.ndarray"]:
    """Every buffer as an array over its memory. *Shape:* ``(batch, context, latent)``"""
    return (_array(buffer) for _, states in sorted(cache.ranks.items()) for _, buffer in sorted(states.items()))


def _array(buffer: Any) -> "np.ndarray":
    # Of a device's memory numpy() gives a copy, which would take what is written to it for itself.
    if buffer.device_name() != "cpu":
        raise RunError(f"rows of a cache on {buffer.device_name()} cannot be viewed.", hint="Use generate_batch there.")
    return buffer.numpy()


def allocate_cache(assemblies: dict[int, Assembly], batch: int, context: int, device: str = "cpu") -> Cache:
    """Zeroed buffers: what was never written must be finite, since its weight of zero is multiplied all the same."""
    return Cache(batch, context, {rank: _buffers(assembly, batch, context, device) for rank, assembly in assemblies.items()})


def _buffers(assembly: Assembly, batch: int, context: int, device: str) -> dict[str, Any]:
    sizes = {BATCH: batch, CONTEXT: context}
    return {
        tensor.name: zeros(tuple(sizes.get(dim, dim) for dim in tensor.shape), tensor.dtype, device)
        for signature in assembly.signatures.values()
        for tensor in signature.state_inputs
    }


def cache_length(tokens: int, most: int) -> int:
    """Positions to allocate for ``tokens``: rounded up, but not beyond ``most``."""
    return min(-(-tokens // STEP) * STEP, most)
