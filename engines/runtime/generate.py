"""Prompts through a chain, then one token at a time, rows of any length side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .sampling import Sampling, next_token

if TYPE_CHECKING:
    import numpy as np

    from .cache import Cache
    from .chain import Chain


PREFILL = 256
"""Prompt tokens that go through the model at once, all rows': bounds the memory of activations."""


def chunks(tokens: int, rows: int = 1) -> Iterator[slice]:
    """The tokens of prompts side by side, ``PREFILL`` of all rows at a time."""
    each = max(PREFILL // rows, 1)
    for begin in range(0, tokens, each):
        yield slice(begin, min(begin + each, tokens))


def generate(chain: "Chain", prompts: list[list[int]], max_tokens: int, sampling: Sampling, stops: tuple[int, ...]) -> Iterator[list[int | None]]:
    """One token of each row at a time; None for rows that have ended. Rows that have ended keep their place.

    :param stops: tokens that end a row; they are not given out.
    """
    import numpy as np

    if max_tokens == 0:
        return
    lengths = np.array([len(prompt) for prompt in prompts])
    cache = chain.cache(len(prompts), int(lengths.max()) + max_tokens)
    logits, chances = prefill(chain, prompts, cache), sampling.generators(len(prompts))
    alive = [True] * len(prompts)
    for number in range(max_tokens):
        tokens = [next_token(row, sampling, chance) for row, chance in zip(logits, chances, strict=True)]
        alive = [going and token not in stops for going, token in zip(alive, tokens, strict=True)]
        if not any(alive):
            return
        yield [token if going else None for going, token in zip(alive, tokens, strict=True)]
        if number + 1 < max_tokens:
            ids = np.array(tokens, np.int64)[:, None]
            logits = chain.step(ids, lengths + number, np.zeros_like(ids), cache)[:, 0]


def prefill(chain: "Chain", prompts: list[list[int]], cache: "Cache") -> "np.ndarray":
    """Logits after each prompt's last token. *Shape:* float32 ``(rows, vocab)``.

    Rows are padded on the right and go through in chunks; a row's logits are taken from the chunk that holds its end.
    """
    import numpy as np

    rows, longest = len(prompts), max(len(prompt) for prompt in prompts)
    padded = np.zeros((rows, longest), np.int64)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    last = np.array([len(prompt) - 1 for prompt in prompts])
    result = np.empty((rows, chain.config.vocab), np.float32)
    for part in chunks(longest, rows):
        inside = (last >= part.start) & (last < part.stop)
        select = np.where(inside, last - part.start, 0)[:, None]
        logits = chain.step(np.ascontiguousarray(padded[:, part]), np.full(rows, part.start), select, cache)[:, 0]
        result[inside] = logits[inside]
    return result
