"""How far apart two sound sides may be: one table, with a reason each, and a file that overrides it."""

from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporter.errors import LoadError, UsageError
from exporter.plan import files

from ..runtime.chain import FAST


@dataclass(frozen=True)
class Tolerance:
    """Limits of one pair of sides; the looser side's decide."""

    relative_l2: float
    """Of all logits, end to end, outliers apart."""
    kl: float | None
    """Mean, in nats; None where it is not judged."""
    margin: float
    """In logits: a likeliest token that leads by less may change places."""
    segment: float
    """Relative L2 of one segment's result, both sides given the same values."""
    token: float
    """The same of one token."""
    experts: float
    """Share of tokens that one segment may send to other experts, both sides given the same values."""
    because: str
    outliers: float = 0.02
    """Share of tokens, rounded up, that may be apart end to end altogether: where a near-tie of two experts fell the other way."""
    top1_flips: float | None = 0.01
    """Share of tokens whose likeliest token may change though it led by more than the margin; None where it is not judged."""
    by_segment: dict[str, dict[str, float]] = field(default_factory=dict)
    """Pattern of segment names, such as ``layers.*.moe_ffn`` → its own ``segment``, ``token`` or ``experts``."""

    def of(self, name: str) -> "Tolerance":
        """For one segment: patterns count in their order, later ones over earlier ones."""
        mine = [limits for pattern, limits in self.by_segment.items() if fnmatchcase(name, pattern)]
        return replace(self, **{key: value for limits in mine for key, value in limits.items()})


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-6, 1e-3, 1e-5, 1e-4, 1e-3, "float32 sums in another order: some ulp a layer, a thousandfold below a wrong tensor", outliers=0.0, top1_flips=0.0),
    "fp16": Tolerance(2e-2, 1e-3, 5e-2, 5e-3, 3e-2, 2e-2, "float16 rounds to 5e-4 at every operator; a near-tie of two experts may fall the other way"),
    "int8-weights": Tolerance(3e-2, 1e-3, 2e-1, 3e-2, 1e-1, 2e-2, "weights in steps of a 127th of a channel's range; a near-tie of two experts may fall the other way"),
    "int8-weights-128": Tolerance(3e-2, 1e-3, 2e-1, 3e-2, 1e-1, 2e-2, "as int8-weights, of a block's range"),
    "int8-weights-32": Tolerance(3e-2, 1e-3, 2e-1, 3e-2, 1e-1, 2e-2, "as int8-weights, of a block's range"),
    "int8-dynamic": Tolerance(6e-2, 5e-3, 3e-1, 6e-2, 2e-1, 2e-2, "as int8-weights, and activations in steps of a 127th of their range"),
    "bf16": Tolerance(1e-1, 1e-2, 3e-1, 4e-2, 2e-1, 1e-1, "bfloat16 rounds to 4e-3 at every operator; routing flips are common"),
    "int8": Tolerance(1e-1, 2e-2, 5e-1, 1.5e-1, 1.0, 2e-2, "as int8-dynamic, in ranges that all tokens share and that a rare one exceeds"),
    "int4-weights": Tolerance(2.5e-1, 1e-1, 1.0, 2.5e-1, 5e-1, 2e-2, "weights in steps of a 7th of a block's range"),
    "int4-weights-128": Tolerance(2.5e-1, 1e-1, 1.0, 2.5e-1, 5e-1, 2e-2, "as int4-weights, in blocks four times as wide"),
}
ROUNDING = Tolerance(2e-2, 5e-4, 1e-1, 2e-3, 3e-2, 1e-3, "the same INT8 numbers on both sides: an activation at half a step may be rounded up or down, by a 127th of its range")
"""Of sides that hold the same numbers and round activations to them."""
SAME_NUMBERS = {
    "int8": ROUNDING,
    "int8-dynamic": ROUNDING,
    **{name: replace(TOLERANCES["fp32"], because="the same numbers on both sides, multiplied in float32 in another order") for name in TOLERANCES if name.startswith(("int8-weights", "int4-weights"))},
}
"""Scheme → limits where both sides were quantised alike: an engine and the graphs that it was built from."""


def tolerance(left: str, right: str, same_numbers: bool = False) -> Tolerance:
    """For a pair of precisions or quantisation schemes; kernels that round activations in their own way do it by blocks.

    :param same_numbers: both hold the same quantised weights and ranges.
    """
    if same_numbers and left == right and left in SAME_NUMBERS:
        return SAME_NUMBERS[left]
    order = list(TOLERANCES)
    pair = [one for name in (left, right) for one in ((name.removesuffix(FAST), "int8-dynamic") if name.endswith(FAST) else (name,))]
    for known in pair:
        if known not in TOLERANCES:
            raise LoadError(f"no tolerance is known for {known!r}.", hint=f"Known are {', '.join(order)}; --tolerance sets one.")
    return TOLERANCES[order[max(map(order.index, pair))]]


LIMITS = tuple(one.name for one in fields(Tolerance) if one.name not in ("because", "by_segment"))
OF_SEGMENTS = ("segment", "token", "experts")


def read_tolerance(path: Path, usual: Tolerance) -> Tolerance:
    """``usual`` with the limits that a file sets: ``{"kl": 1e-3, "segments": {"layers.*.moe_ffn": {"segment": 0.01}}}``.

    :raises UsageError: a name is unknown, or a value is no number of 0 or more.
    """
    try:
        given = files.read_json(path)
    except LoadError as cause:
        raise UsageError(cause.message, cause.hint) from cause
    by_segment = given.pop("segments", {}) if isinstance(given, dict) else {}
    _require_limits(given, LIMITS, str(path))
    if not isinstance(by_segment, dict):
        raise UsageError(f"{path}: segments is no object of patterns.", hint='Such as {"layers.*.moe_ffn": {"segment": 0.01}}.')
    for pattern, limits in by_segment.items():
        _require_limits(limits, OF_SEGMENTS, f"{path}: segments: {pattern}")
    return replace(usual, because=str(path), by_segment=by_segment, **given)


def _require_limits(given: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise UsageError(f"{where} is no object of limits.", hint=f"Known are {', '.join(known)}.")
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{where} sets {name!r}, which is no limit.", hint=f"Known are {', '.join((*known, 'segments') if known is LIMITS else known)}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise UsageError(f"{where} sets {name} to {value!r}; a number of 0 or more is expected.")
