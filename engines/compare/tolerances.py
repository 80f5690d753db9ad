"""How far apart two sound chains may be: one table, with a reason each."""

from dataclasses import dataclass

from exporter.errors import LoadError


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
    "bf16": Tolerance(1e-1, 1e-2, "bfloat16 rounds to 4e-3 at every operator; routing flips are common"),
}


def tolerance(left: str, right: str) -> Tolerance:
    """For a pair of precisions or quantisation schemes."""
    order = list(TOLERANCES)
    for known in (left, right):
        if known not in TOLERANCES:
            raise LoadError(f"no tolerance is known for {known!r}.", hint=f"Known are {', '.join(order)}; --tolerance sets one.")
    return TOLERANCES[order[max(order.index(left), order.index(right))]]
