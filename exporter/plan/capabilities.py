"""What a backend can do, as data: planning, lowering and help need none of them installed."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Capabilities:
    """One backend's abilities. The values stand in ``engines/backends``, one per backend."""

    backend: str
    kernels: frozenset[str]
    """Ops beyond the standard that it runs, ``domain.Op``."""
    dtypes: frozenset[str]
    """Precisions that it computes in: ``fp32``, ``fp16``, ``bf16``."""
    collectives_inside: bool
    """Its graphs may hold collectives; else graphs are cut there and the chain performs them."""
    needs_gpu_to_run: bool
    extra: str
    """What to install: ``pip install 'moetrt[<extra>]'``."""
    kernel_dtypes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Kernel → precisions that it computes in, where those are not all of ``dtypes``."""
    notes: tuple[str, ...] = ()
    """What a user should know, one sentence each; ``inspect`` prints them."""

    def has(self, kernel: str) -> bool:
        return kernel in self.kernels

    def computes(self, kernel: str, precision: str) -> bool:
        """Whether it runs the kernel in this precision, without casts around it."""
        return self.has(kernel) and precision in self.kernel_dtypes.get(kernel, self.dtypes)
