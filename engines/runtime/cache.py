"""The latent cache of a chain: one buffer a layer and rank, read and written in place."""

from dataclasses import dataclass
from typing import Any

from exporter.plan.manifest import Assembly
from exporter.plan.signature import BATCH, CONTEXT

from .session import zeros

STEP = 64
"""Cache lengths are multiples of this, so that requests of like length share a buffer."""


@dataclass(frozen=True)
class Cache:
    """Buffers of all ranks, for ``batch`` rows of ``context`` positions."""

    batch: int
    context: int
    ranks: dict[int, dict[str, Any]]
    """Rank → state input → buffer."""


def allocate_cache(assemblies: dict[int, Assembly], batch: int, context: int) -> Cache:
    """Zeroed buffers: what was never written must be finite, since its weight of zero is multiplied all the same."""
    return Cache(batch, context, {rank: _buffers(assembly, batch, context) for rank, assembly in assemblies.items()})


def _buffers(assembly: Assembly, batch: int, context: int) -> dict[str, Any]:
    sizes = {BATCH: batch, CONTEXT: context}
    return {
        tensor.name: zeros(tuple(sizes.get(dim, dim) for dim in tensor.shape), tensor.dtype)
        for signature in assembly.signatures.values()
        for tensor in signature.state_inputs
    }


def cache_length(tokens: int, most: int) -> int:
    """Positions to allocate for ``tokens``: rounded up, but not beyond ``most``."""
    return min(-(-tokens // STEP) * STEP, most)
