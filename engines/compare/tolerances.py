"""How far apart two sound chains may be: one table, with a reason each."""

from dataclasses import dataclass

from exporter.errors import LoadError

from ..runtime.chain import FAST


@dataclass(frozen=True)
class Tolerance:
    """Limits on the logits of one pair; the looser of the two decides."""

    relative_l2: float
    kl: float
    """Mean, in nats."""
    because: str


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-6, "float32 sums in another order: some ulp a layer, a thousandfold below a wrong tensor"),
    "fp16": Tolerance(2e-2, 1e-3, "float16 rounds to 5e-4 at every operator; a near-tie of two experts may fall the other way"),
    "int8-weights": Tolerance(3e-2, 1e-3, "weights in steps of a 127th of a channel's range; a near-tie of two experts may fall the other way"),
    "int8-weights-128": Tolerance(3e-2, 1e-3, "as int8-weights, of a block's range"),
    "int8-weights-32": Tolerance(3e-2, 1e-3, "as int8-weights, of a block's range"),
    "int8-dynamic": Tolerance(6e-2, 5e-3, "as int8-weights, and activations in steps of a 127th of their range"),
    "bf16": Tolerance(1e-1, 1e-2, "bfloat16 rounds to 4e-3 at every operator; routing flips are common"),
    "int8": Tolerance(1e-1, 2e-2, "as int8-dynamic, in ranges that all tokens share and that a rare one exceeds"),
    "int4-weights": Tolerance(2.5e-1, 1e-1, "weights in steps of a 7th of a block's range"),
    "int4-weights-128": Tolerance(2.5e-1, 1e-1, "as int4-weights, in blocks four times as wide"),
}


def tolerance(left: str, right: str) -> Tolerance:
    """For a pair of precisions or quantisation schemes; kernels that round activations in their own way do it by blocks."""
    order = list(TOLERANCES)
    pair = [one for name in (left, right) for one in ((name.removesuffix(FAST), "int8-dynamic") if name.endswith(FAST) else (name,))]
    for known in pair:
        if known not in TOLERANCES:
            raise LoadError(f"no tolerance is known for {known!r}.", hint=f"Known are {', '.join(order)}; --tolerance sets one.")
    return TOLERANCES[order[max(map(order.index, pair))]]
