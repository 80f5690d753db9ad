"""SmoothQuant (arXiv 2211.10438): part of an input channel's spread moves from activations into weights.

The norm's weight is divided by a factor per channel, and every matrix that reads the norm is multiplied by it: the
routed experts of all ranks, the shared ones, and the router, so that no token changes its experts.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import RunError
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank

from .schemes import segment_of
from .table import Range, Table
from .weights import Weights

if TYPE_CHECKING:
    import numpy as np

SMALLEST = 1e-5
"""Least factor: channels that are dead in weights or activations are left alone."""


def smoothed_segments(table: Table) -> dict[str, tuple[str, ...]]:
    """Segment → the quantised matrices that read its norm."""
    found: dict[str, tuple[str, ...]] = {}
    for weight, seen in table.linears.items():
        if seen.channels:
            found[segment_of(weight)] = (*found.get(segment_of(weight), ()), weight)
    return found


def smoothing_factors(graphs: Path, ranks: dict[int, GraphsRank], table: Table, alpha: float, skip: frozenset[str] = frozenset()) -> "dict[str, np.ndarray]":
    """Segment → factor of each channel of its norm's output: max|x|^alpha / max|w|^(1 - alpha), over all ranks.

    :param skip: segments that stay float.
    """
    import numpy as np

    found: dict[str, np.ndarray] = {}
    weights = {rank: Weights(graphs / records.rank_folder(rank) / record.weights) for rank, record in ranks.items()}
    for segment, readers in smoothed_segments(table).items():
        if segment in skip:
            continue
        seen = np.array(table.linears[readers[0]].channels, np.float32)
        held = [rank.input_maxima(name) for rank in weights.values() for name in readers if name in rank.infos]
        if not held or len(held[0]) != len(seen):
            raise RunError(f"the table has {len(seen)} channels for {readers[0]}, the graphs have {len(held[0]) if held else 'no such weight'}.", hint="Calibrate these graphs.")
        most = np.max(held, axis=0)
        alive = (seen > 0) & (most > 0)
        factor = np.ones(len(seen), np.float32)
        factor[alive] = np.maximum(seen[alive] ** alpha / most[alive] ** (1 - alpha), SMALLEST)
        found[segment] = factor
    return found


def factors_of_weights(segments: "dict[str, np.ndarray]", names: list[str]) -> "dict[str, np.ndarray]":
    """What each weight's input channels are multiplied by: the readers' by the factor, the norms' by its inverse."""
    readers = ("q", "q_a", "kv_a", "gate", "up", "router", "shared.gate", "shared.up", "experts.gate_up")
    found = {}
    for name in names:
        segment = segment_of(name)
        if segment in segments:
            local = name[len(segment) + 1 :]
            if local == "norm":
                found[name] = 1 / segments[segment]
            elif local in readers:
                found[name] = segments[segment]
    return found


def smoothed_table(table: Table, segments: "dict[str, np.ndarray]") -> Table:
    """The table as it would have been calibrated after smoothing: maxima by the channels', ranges in their old proportion to them."""
    import numpy as np

    def smooth(weight: str, seen: Range) -> Range:
        factor = segments.get(segment_of(weight))
        if factor is None or not seen.channels:
            return seen
        channels = np.array(seen.channels, np.float32) / factor
        most = float(channels.max())
        return replace(seen, amax=most * seen.amax / max(seen.maximum, SMALLEST), maximum=most, channels=tuple(channels.tolist()), error=None, histogram=(), top=0.0)

    return replace(table, linears={weight: smooth(weight, seen) for weight, seen in table.linears.items()})
