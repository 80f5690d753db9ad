"""Does a rank fit its device, and how many ranks would: weights, latent cache and a reserve."""

from collections.abc import Callable
from dataclasses import dataclass

from .config import ModelConfig
from .legality import problems
from .parallel import Plan, Shard

RESERVE = 0.10
"""Share of device memory left for activations, workspaces and the runtime."""
CONTEXT = 32768
"""Tokens cached at once where nothing else is asked: eight rows of 4096."""
RANK_COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Rank counts that a suggestion is chosen from."""
GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """What one rank keeps in device memory."""

    weight_bytes: int
    cache_bytes_per_token: int

    def total(self, context: int) -> int:
        return self.weight_bytes + self.cache_bytes_per_token * context


@dataclass(frozen=True)
class Device:
    """Memory of one rank's device, in bytes."""

    memory: int

    @property
    def usable(self) -> int:
        """What remains under the reserve."""
        return int(self.memory * (1 - RESERVE))


def cache_bytes_per_token(config: ModelConfig, shard: Shard, precision: str) -> int:
    """Bytes of latent cache that one token takes on a rank: every tensor rank holds its stage's layers whole."""
    return config.latent * len(shard.layers) * (4 if precision == "fp32" else 2)


def fits(demands: list[Demand], device: Device, context: int) -> bool:
    return max(demand.total(context) for demand in demands) <= device.usable


def suggest(config: ModelConfig, pipeline: int, precision: str, accepts: Callable[[Plan], bool]) -> int | None:
    """The smallest legal rank count in ``RANK_COUNTS`` whose plan is accepted; None where there is none.

    :param accepts: whether a legal plan fits.
    """
    for ranks in RANK_COUNTS:
        if ranks % pipeline == 0:
            plan = Plan(ranks // pipeline, pipeline)
            if not problems(config, plan, precision) and accepts(plan):
                return ranks
    return None
