"""Magnitudes of activations in bounded memory, and the methods that choose a range from them."""

from collections.abc import Callable
from math import log2
from typing import TYPE_CHECKING

from exporter.errors import UsageError

from .table import LEVELS

if TYPE_CHECKING:
    import numpy as np

BINS = 2048
PERCENTILE = 0.9999
"""Part of the values that the range of ``percentile`` holds."""
SMALLEST_TOP = 2.0**-100
LEAST_BINS = 128
"""Where ``entropy`` begins its search: as many bins as INT8 has magnitudes."""


class Histogram:
    """Counts of magnitudes in equal bins from 0 to ``top``, a power of two that grows by merging bins in pairs.

    Bins of one top nest exactly in those of the next, so any order and grouping of the same values gives the same counts.
    """

    def __init__(self) -> None:
        import numpy as np

        self.counts: np.ndarray = np.zeros(BINS, np.int64)
        self.top, self.maximum, self.total, self.bad = SMALLEST_TOP, 0.0, 0, 0

    def add(self, values: "np.ndarray") -> None:
        """Count ``values`` of any shape; those that are not finite are counted as ``bad`` and nowhere else."""
        import numpy as np

        x = np.abs(np.asarray(values).reshape(-1))
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
        if not x.size:
            return
        most = float(x.max())
        if not np.isfinite(most):
            finite = np.isfinite(x)
            self.bad += int(x.size - finite.sum())
            x = x[finite]
            most = float(x.max()) if x.size else 0.0
        self.maximum, self.total = max(self.maximum, most), self.total + x.size
        self._grow(most)
        # Scaling by a power of two is exact.
        bins = np.minimum(np.ldexp(x, int(log2(BINS / self.top))), BINS - 1).astype(np.int32)
        self.counts += np.bincount(bins, minlength=BINS)

    def merge(self, other: "Histogram") -> None:
        """Add what another has counted."""
        self.maximum, self.total, self.bad = max(self.maximum, other.maximum), self.total + other.total, self.bad + other.bad
        self._grow(other.maximum)
        counts, top = other.counts, other.top
        while top < self.top:
            counts, top = _halved(counts), top * 2
        self.counts = self.counts + counts

    def coarse(self, bins: int) -> tuple[tuple[int, ...], float]:
        """The counts in fewer bins (a divisor of ``BINS``), and their top."""
        return tuple(self.counts.reshape(bins, -1).sum(axis=1).tolist()), self.top

    def _grow(self, most: float) -> None:
        while self.top <= most:
            self.counts, self.top = _halved(self.counts), self.top * 2


def _halved(counts: "np.ndarray") -> "np.ndarray":
    """The same counts in bins twice as wide: the upper half is empty."""
    import numpy as np

    made = np.zeros_like(counts)
    made[: BINS // 2] = counts.reshape(-1, 2).sum(axis=1)
    return made


def _max(histogram: Histogram) -> float:
    return histogram.maximum


def _percentile(histogram: Histogram) -> float:
    import numpy as np

    bin_ = int(np.searchsorted(np.cumsum(histogram.counts), PERCENTILE * histogram.total))
    return _edge(histogram, bin_ + 1)


def _entropy(histogram: Histogram) -> float:
    """The range whose 128 levels say most about the values (Migacz, 8-bit inference with TensorRT, GTC 2017)."""
    costs = {bins: entropy_cost(histogram.counts, bins) for bins in range(LEAST_BINS, _filled(histogram) + 1)}
    return _edge(histogram, min(costs, key=costs.__getitem__)) if costs else histogram.maximum


def entropy_cost(counts: "np.ndarray", bins: int) -> float:
    """KL of the clipped distribution from its 128-level form: outliers count in the one, in the last bin, and not in the other."""
    import numpy as np

    inside = counts[:bins].astype(np.float64)
    clipped = inside.copy()
    clipped[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEAST_BINS // bins
    held = np.bincount(level, weights=inside, minlength=LEAST_BINS)
    filled = np.bincount(level, weights=inside > 0, minlength=LEAST_BINS)
    spread = np.where(inside > 0, (held / np.maximum(filled, 1))[level], 0.0)
    wanted, given = clipped / clipped.sum(), spread / max(spread.sum(), 1.0)
    here = wanted > 0
    return float((wanted[here] * np.log(wanted[here] / np.maximum(given[here], 1e-12))).sum())


def _mse(histogram: Histogram) -> float:
    """The range with the least squared error of rounding and clipping, by the middles of the bins."""
    import numpy as np

    width = histogram.top / BINS
    held = np.flatnonzero(histogram.counts)
    middles, counts = (held + 0.5) * width, histogram.counts[held]
    edges = np.arange(max(1, _filled(histogram) // 16), _filled(histogram) + 1)
    costs = [mse_cost(middles, counts, min(edge * width, histogram.maximum)) for edge in edges]
    return _edge(histogram, int(edges[int(np.argmin(costs))]))


def mse_cost(middles: "np.ndarray", counts: "np.ndarray", limit: float) -> float:
    """Squared error of magnitudes quantised with the range ``limit``: all of one that becomes zero, a twelfth of a step's square
    on the average inside, the excess beyond."""
    import numpy as np

    step = limit / LEVELS
    inside = np.where(middles < step / 2, middles**2, step**2 / 12)
    return float((counts * np.where(middles > limit, (middles - limit) ** 2, inside)).sum())


def relative_error(histogram: Histogram, limit: float) -> float:
    """Root of the squared error that the range ``limit`` costs over the sum of squares; 0 where nothing was seen."""
    import numpy as np

    held, width = np.flatnonzero(histogram.counts), histogram.top / BINS
    middles, counts = (held + 0.5) * width, histogram.counts[held]
    whole = float((counts * (middles**2 + width**2 / 12)).sum())
    return (mse_cost(middles, counts, limit) / whole) ** 0.5 if limit > 0 and whole > 0 else 0.0


def _filled(histogram: Histogram) -> int:
    """Bins up to the largest value."""
    import numpy as np

    held = np.flatnonzero(histogram.counts)
    return int(held[-1]) + 1 if len(held) else 0


def _edge(histogram: Histogram, bins: int) -> float:
    """Upper edge of a bin, never beyond what was seen."""
    return min(bins * histogram.top / BINS, histogram.maximum)


METHODS: dict[str, Callable[[Histogram], float]] = {"max": _max, "percentile": _percentile, "entropy": _entropy, "mse": _mse}


def amax(histogram: Histogram, method: str) -> float:
    """The range that a method chooses; 0 where nothing but zeros was seen.

    :raises UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}.", hint=f"Known are {', '.join(METHODS)}.")
    return float(METHODS[method](histogram)) if histogram.maximum > 0 else 0.0
