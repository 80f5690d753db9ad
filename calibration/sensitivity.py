"""What quantising does to the logits of held-out prompts: of one segment alone, and of a whole mixture of segments."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.compare.metrics import divergence, log_softmax
from exporter.errors import UsageError
from exporter.plan.manifest import GraphsRank

from .schemes import segment_of
from .walk import Batch, Part, batches, parts, walk_part

if TYPE_CHECKING:
    import numpy as np


TRIALS_BYTES = 4 << 30
"""Streams of all trials of one walk, at most: more segments take more walks."""


@dataclass
class Score:
    """Sums over the tokens of held-out prompts."""

    tokens: int = 0
    predicted: int = 0
    """Tokens that have one after them to be predicted."""
    kl: float = 0.0
    float_loss: float = 0.0
    loss: float = 0.0

    @property
    def mean_kl(self) -> float:
        return self.kl / max(self.tokens, 1)

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the float graphs and of the mixture."""
        from math import exp

        count = max(self.predicted, 1)
        return exp(self.float_loss / count), exp(self.loss / count)


@dataclass(frozen=True)
class Ladder:
    """Float and quantised graphs of one model, and held-out prompts to tell them apart."""

    ranks: dict[int, GraphsRank]
    floats: Path
    quantised: Path
    prompts: Sequence[Sequence[int]]
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("there are no held-out prompts.", hint="Give --held-out a file with at least one.")

    def score(self, quantised: frozenset[str]) -> Score:
        """Of the mixture in which these segments are quantised."""
        left, right = self._fresh(), self._fresh()
        for part in self.parts[:-1]:
            _run(part, left, self.floats)
            _run(part, right, self._folder(part, quantised))
        return self._compare(left, right, self._folder(self.parts[-1], quantised))

    def walks(self, segments: Sequence[str]) -> list[Sequence[str]]:
        """The segments that can be tried in one walk each: every trial keeps streams of its own, two values of the hidden width by token."""
        many = max(1, TRIALS_BYTES // (2 * 4 * self.ranks[0].config.hidden * sum(map(len, self.prompts))))
        return [segments[begin : begin + many] for begin in range(0, len(segments), many)]

    def sensitivities(self, walks: Iterable[Sequence[str]], told: Callable[[str], None] = lambda name: None) -> dict[str, float]:
        """Segment → mean KL with it alone quantised, the worst first.

        :param told: called in each walk with each of the model's segments when it is done.
        """
        found = {name: kl for segments in walks for name, kl in self._together(segments, told).items()}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def _together(self, segments: Sequence[str], told: Callable[[str], None]) -> dict[str, float]:
        """One walk for several segments: each segment's weights are opened once, or twice where it is on trial."""
        truth = self._fresh()
        trials: dict[str, list[Batch]] = {}
        for part in self.parts[:-1]:
            if part.name in segments:
                trials[part.name] = [Batch(one.token_ids, one.lengths, dict(one.values)) for one in truth]
                _run(part, trials[part.name], self.quantised)
            _run(part, [*truth, *(one for name, trial in trials.items() if name != part.name for one in trial)], self.floats)
            told(part.name)
        found = {name: self._compare(truth, trial, self.floats).mean_kl for name, trial in trials.items()}
        if self.parts[-1].name in segments:
            found[self.parts[-1].name] = self._compare(truth, truth, self.quantised).mean_kl
        told(self.parts[-1].name)
        return found

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts(self.ranks)

    def _folder(self, part: Part, quantised: frozenset[str]) -> Path:
        return self.quantised if part.name in quantised else self.floats

    def _fresh(self) -> list[Batch]:
        return batches(self.prompts, self.batch)

    def _compare(self, left: list[Batch], right: list[Batch], head: Path) -> Score:
        """Both streams through the head, a piece of the logits at a time."""
        part, score = self.parts[-1], Score()
        pairs = zip(walk_part(part, left, self.floats), walk_part(part, right, head), strict=True)
        for (batch, (select, one)), (_, (_, other)) in pairs:
            _add(score, batch, select, one, other)
        return score


def _run(part: Part, given: Sequence[Batch], folder: Path) -> None:
    for _ in walk_part(part, given, folder):
        pass


def _add(score: Score, batch: Batch, select: "np.ndarray", left: "np.ndarray", right: "np.ndarray") -> None:
    import numpy as np

    for row, length in enumerate(batch.lengths):
        inside = select < length
        a, b = left[row][inside].astype(np.float64), right[row][inside].astype(np.float64)
        score.tokens += len(a)
        score.kl += float(divergence(a, b).sum())
        followed = select[select + 1 < length]
        score.predicted += len(followed)
        after = batch.token_ids[row, followed + 1]
        here = np.arange(len(followed))
        score.float_loss -= float(log_softmax(a)[here, after].sum())
        score.loss -= float(log_softmax(b)[here, after].sum())


def quantised_segments(weights: dict[int, dict[str, str]]) -> tuple[str, ...]:
    """Segments with a quantised weight on any rank.

    :param weights: rank → quantised weight → what becomes of its input.
    """
    return tuple(dict.fromkeys(segment_of(name) for held in weights.values() for name in held))


def choose_float(ladder: Ladder, ranking: dict[str, float], budget: float) -> tuple[tuple[str, ...], Score]:
    """The fewest of the most sensitive segments that must stay float for the mean KL to be within ``budget``.

    By bisection: each further segment in float is taken to lower the KL. What is returned was measured.

    :param ranking: from :meth:`Ladder.sensitivities`, the worst first.
    :returns: those segments, and the score of the rest quantised.
    """
    names = list(ranking)
    low, high, best = 0, len(names), None
    while low < high or best is None:
        kept = (low + high) // 2
        score = ladder.score(frozenset(names[kept:]))
        if score.mean_kl <= budget or kept == len(names):
            high, best = kept, (tuple(names[:kept]), score)
        else:
            low = kept + 1
    return best
