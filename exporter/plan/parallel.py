"""Who owns what: tensor, expert and pipeline ranks as plain ranges."""

from dataclasses import dataclass

from ..errors import PlanError
from .config import ModelConfig


@dataclass(frozen=True)
class Plan:
    """How a model is shared: ``tensor`` ranks in each of ``pipeline`` stages.

    Attention and dense feed-forwards are split by tensor, routed experts whole by expert, layers by stage.
    """

    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, value in (("--tensor", self.tensor), ("--pipeline", self.pipeline)):
            if value < 1:
                raise PlanError(f"{name} is {value}; a plan needs at least one rank.", hint=f"Choose {name} 1 or more.")

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Range:
    """Half-open: from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self):
        return iter(range(self.start, self.stop))

    def __contains__(self, item: int) -> bool:
        return self.start <= item < self.stop


@dataclass(frozen=True)
class Shard:
    """What one rank owns. ``rank = stage * plan.tensor + tensor_rank``."""

    rank: int
    stage: int
    tensor_rank: int
    tensor_ranks: int
    """How many ranks share this stage's tensors."""
    layers: Range
    heads: Range
    experts: Range
    vocab: Range
    """Rows of the embedding and of the head, where this rank's stage has them."""
    first: bool
    """This stage holds the embedding."""
    last: bool
    """This stage holds the head."""


def share(count: int, parts: int, index: int) -> Range:
    """The ``index``-th of ``parts`` near-equal contiguous pieces; the first pieces take the remainder."""
    base, extra = divmod(count, parts)
    start = index * base + min(index, extra)
    return Range(start, start + base + (index < extra))


def shard(config: ModelConfig, plan: Plan, rank: int) -> Shard:
    """What ``rank`` owns under a legal plan (see :mod:`exporter.plan.legality`)."""
    if not 0 <= rank < plan.ranks:
        raise PlanError(f"rank {rank} is not in a plan of {plan.ranks} ranks.", hint=f"Choose --rank from 0 to {plan.ranks - 1}.")
    stage, tensor_rank = divmod(rank, plan.tensor)
    return Shard(
        rank=rank,
        stage=stage,
        tensor_rank=tensor_rank,
        tensor_ranks=plan.tensor,
        layers=share(config.layers, plan.pipeline, stage),
        heads=share(config.heads, plan.tensor, tensor_rank),
        experts=share(config.experts, plan.tensor, tensor_rank),
        vocab=share(config.vocab, plan.tensor, tensor_rank),
        first=stage == 0,
        last=stage == plan.pipeline - 1,
    )


def shards(config: ModelConfig, plan: Plan) -> tuple[Shard, ...]:
    return tuple(shard(config, plan, rank) for rank in range(plan.ranks))
