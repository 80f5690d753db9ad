"""Which tokens stand in a column of a picture, and what becomes of values that share one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST, CELLS = 160, 13_000
"""Columns of a picture, and cells of one, at most: its size must not grow with the prompts."""
ABSENT = -1.0
"""In the place of a distance: none of the column's tokens has one."""


@dataclass(frozen=True)
class Folded:
    """One row of a picture, column by column."""

    worst: "np.ndarray"
    """Largest value, infinite where one is not a number; ``ABSENT`` where all tokens are left out."""
    prompt: "np.ndarray"
    """Of that value."""
    left_out: "np.ndarray"
    """Tokens whose value is NaN: those that go to other experts."""
    tokens: "np.ndarray"


@dataclass(frozen=True)
class Columns:
    """Positions in prompts, shared out among columns."""

    prompts: tuple[int, ...]
    """One, or all."""
    edges: tuple[int, ...]
    """The first position of each column, and the end."""

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def single(self) -> bool:
        """A token a column, of one prompt."""
        return len(self.prompts) == 1 and self.edges[-1] == len(self)

    def told(self, column: int) -> str:
        first, last = self.edges[column], self.edges[column + 1] - 1
        return f"token {first}" if first == last else f"tokens {first} to {last}"

    def fold(self, values: "Mapping[int, Sequence[np.ndarray]]") -> Folded:
        """:param values: prompt → each step's values, a value a token; NaN for what is left out."""
        import numpy as np

        whole = np.full((len(self.prompts), self.edges[-1]), ABSENT)
        for row, prompt in zip(whole, self.prompts, strict=True):
            steps = values.get(prompt)
            if steps:
                known = np.concatenate(steps)[: len(row)]
                row[: len(known)] = known
        out, starts = np.isnan(whole), np.asarray(self.edges[:-1])
        there = (whole != ABSENT).sum(0)
        whole[out] = ABSENT
        best, owner = whole.max(0), np.asarray(self.prompts)[whole.argmax(0)]
        places = [start + int(best[start:stop].argmax()) for start, stop in zip(self.edges, self.edges[1:], strict=False)]
        return Folded(best[places], owner[places], np.add.reduceat(out.sum(0), starts), np.add.reduceat(there, starts))


def choose(lengths: Sequence[int], prompt: int, rows: int) -> Columns:
    """The tokens of one prompt, if they have room; else all prompts, position by position.

    :param lengths: tokens of each prompt. :param rows: of the picture.
    """
    room = max(1, min(MOST, CELLS // max(rows, 1)))
    if lengths[prompt] <= room:
        return Columns((prompt,), tuple(range(lengths[prompt] + 1)))
    longest = max(lengths)
    return Columns(tuple(range(len(lengths))), tuple(round(longest * column / room) for column in range(room + 1)))


def worst_of_tensors(gaps: "Sequence[Mapping[int, list[np.ndarray]]]") -> "dict[int, list[np.ndarray]]":
    """Token by token the largest distance among a segment's results; NaN wherever one is NaN."""
    import numpy as np

    by_prompt = [{prompt: np.concatenate(steps) for prompt, steps in gap.items() if steps} for gap in gaps]
    common = set(by_prompt[0]).intersection(*by_prompt[1:]) if by_prompt else set()
    return {prompt: [np.maximum.reduce([one[prompt] for one in by_prompt])] for prompt in common}
