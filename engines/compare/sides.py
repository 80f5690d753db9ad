"""What two sides have in common, whatever they are: logits of tokens that are given, and one segment at a time."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from exporter.models import FAMILIES
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.parallel import Plan, shards

from ..runtime.generate import chunks

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Given:
    """What a segment is called with, of one prompt."""

    token_ids: "np.ndarray"
    """*Shape:* int64 ``(1, tokens)``"""
    start: int
    """Position of the first of them."""
    hidden: "np.ndarray | None" = None
    """The residual stream as the segment before read it. *Shape:* ``(1, tokens, hidden)``; None for the first segment."""
    update: "np.ndarray | None" = None
    """What is to be added to it. None for the first two segments."""


@dataclass(frozen=True)
class Made:
    """What a segment made of it: float32 arrays over the given tokens, the first axis."""

    ranks: dict[int, dict[str, "np.ndarray"]]
    """Rank → ``hidden``, ``update``, ``latents`` (the cache's new rows) or ``logits``, after the collective: sound ranks agree."""
    parts: dict[int, "np.ndarray"]
    """Rank → its part before the collective; empty where there is none."""
    experts: "np.ndarray | None" = None
    """Which routed experts each token goes to, in no order. *Shape:* int64 ``(tokens, top_k)``"""

    @property
    def first(self) -> dict[str, "np.ndarray"]:
        return self.ranks[min(self.ranks)]


class OpenSegment(Protocol):
    """One segment, its weights at hand; a state belongs to one prompt, and steps come in order."""

    def begin(self, context: int) -> Any:
        """An empty cache for ``context`` positions, if the segment has one."""

    def run(self, given: Given, state: Any) -> Made: ...

    def cache(self, state: Any) -> "dict[str, np.ndarray]":
        """What the state holds, by the name of the graph's input; empty where that is nobody else's."""


class Run(Protocol):
    """One prompt through a whole side."""

    def step(self, token_ids: "np.ndarray", start: int) -> "np.ndarray":
        """:param token_ids: *Shape:* int64 ``(1, tokens)``. :returns: logits after each. *Shape:* float32 ``(tokens, vocab)``"""


class Side(Protocol):
    """Engines, graphs, or a checkpoint."""

    folder: Path
    config: ModelConfig
    plan: Plan
    arithmetic: str
    """Precision or scheme: what decides how far its numbers may be from another's."""
    max_context: int
    identity: tuple[Any, ...]
    """Sides with an equal one hold the same numbers: checkpoint, precision, quantisation, and the split where scales depend on it."""
    fingerprint: str | None
    """Of the checkpoint that it was made from; None where that is not known."""
    sealed: str | None
    """Why its segments cannot be walked one by one; None where they can."""

    def begin(self, context: int) -> Run: ...

    def open(self, segment: str) -> AbstractContextManager[OpenSegment]: ...

    def close(self) -> None: ...


def segment_names(config: ModelConfig) -> tuple[str, ...]:
    """All segments of a model, in the order they run: equal for every plan."""
    family = FAMILIES[config.family]
    return tuple(segment.name for shard in shards(config, Plan(1)) for segment in family.segments(config, shard))


def steps(tokens: int, decode: int) -> Iterator[slice]:
    """A prompt of known tokens as a server would meet it: chunks of prompt, then ``decode`` tokens one by one."""
    prompt = max(tokens - decode, 1)
    yield from chunks(prompt)
    for position in range(prompt, tokens):
        yield slice(position, position + 1)


def open_side(path: Path) -> Side:
    """Engines or graphs run as each rank's files say; a checkpoint is run by transformers.

    :raises LoadError: it is neither, or cannot run here.
    """
    if (path / "config.json").is_file() and not (path / records.MANIFEST).is_file():
        from .reference import Reference

        return Reference(path)
    from .chain_side import ChainSide

    return ChainSide(path)


def teacher_forced(side: Side, token_ids: Sequence[int], decode: int) -> "tuple[np.ndarray, np.ndarray]":
    """Logits of a prompt's tokens: those that went in as a prompt, and those that went in one by one. *Shape:* float32 ``(tokens, vocab)`` each."""
    import numpy as np

    ids, run = np.asarray([token_ids], np.int64), side.begin(len(token_ids))
    found = [run.step(ids[:, part], part.start) for part in steps(len(token_ids), decode)]
    whole = np.concatenate(found)
    prompt = max(len(token_ids) - decode, 1)
    return whole[:prompt], whole[prompt:]
