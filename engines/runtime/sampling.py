"""From logits to the next token: pure functions of float32 rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.errors import RunError, UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the best one at temperature 0, else drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probabilities sum to this."""
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"--temperature is {self.temperature}; it must be 0 or more.", hint="0 is greedy.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p}; it must be above 0 and at most 1.")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; it must be 0 or more.")

    def generators(self, rows: int) -> "list[np.random.Generator]":
        """One source of chance a row, so that a row's text does not depend on its neighbours."""
        import numpy as np

        return [np.random.default_rng(None if self.seed is None else (self.seed, row)) for row in range(rows)]


def next_token(logits: "np.ndarray", sampling: Sampling, generator: "np.random.Generator") -> int:
    """:param logits: of one position. *Shape:* float32 ``(vocab)``

    :raises RunError: one of them is not a number.
    """
    import numpy as np

    best = int(logits.argmax())
    if np.isnan(logits[best]):  # which counts as the largest
        raise RunError(f"the logit of token {best} is not a number (NaN).", hint="Look for NaN among the checkpoint's weights; `moetrt compare` names the segment where numbers part.")
    if sampling.temperature == 0:
        return best
    scaled = logits.astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    return int(generator.choice(len(logits), p=nucleus(probabilities, sampling.top_p)))


def nucleus(probabilities: "np.ndarray", top_p: float) -> "np.ndarray":
    """The likeliest tokens that reach ``top_p`` together, renormalised; the token that crosses it is in."""
    import numpy as np

    if top_p >= 1:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    inside = order[before < top_p]
    kept[inside] = probabilities[inside]
    return kept / kept.sum()
