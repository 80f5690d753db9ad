"""Parity over long contexts: two sides read the same tokens up to each length, and logits are held against each other by depth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from exporter import progress
from exporter.errors import UsageError

from .metrics import Accumulator, Difference
from .tolerances import Tolerance
from .verdict import Divergence, end_to_end, wrapped

if TYPE_CHECKING:
    from .sides import Side

DEPTHS = 10
"""Equal parts of a context."""
SCORES = 256 << 20
"""Bytes of attention scores that one step may make, at most: the reference's chunk is made to fit."""
COPIES = 3
"""Of the scores that eager attention holds at once."""
CHUNK = 256
THOUSAND = 1024
"""A ``k`` in a length, as contexts are named."""


@dataclass(frozen=True)
class Length:
    """One context: how its logits compare, from its beginning to its end."""

    tokens: int
    chunk: int
    """Tokens that go in at once."""
    beyond_original: int
    """Tokens past the context that the model was trained on before YaRN stretched it; 0 where there is no YaRN."""
    depths: tuple[Difference, ...]
    """Of each tenth."""


@dataclass(frozen=True)
class LengthsComparison:
    """What ``compare --lengths --json`` prints."""

    verdict: str
    first_divergent: Divergence | None
    outputs: tuple[Difference, ...]
    """Of each length as a whole, called after it."""
    lengths: tuple[Length, ...]
    left: str
    right: str
    tolerance: Tolerance
    notes: tuple[str, ...] = ()
    mode: str = "lengths"
    kind: str = "comparison"
    version: int = 1

    def summary(self) -> str:
        head = f"{'tokens':>7} " + "".join(f"{f'{100 * part // DEPTHS}%':>7}" for part in range(1, DEPTHS + 1))
        lines = ["relative L2 of the logits, by tenths of each context", head]
        lines += [f"{one.tokens:7} " + "".join(f"{depth.relative_l2:7.0e}" for depth in one.depths) for one in self.lengths]
        lines += [f"{one.tokens}: {one.chunk} at a time" + (f", {one.beyond_original} beyond the original context" if one.beyond_original else "") for one in self.lengths]
        worst = max(self.outputs, key=lambda one: one.kl)
        lines += [f"KL at most {worst.kl:.2g} nats a token; likeliest tokens agree on {min(one.top1_agreement for one in self.outputs):.2%} or more"]
        lines += [wrapped(f"note: {note}") for note in self.notes]
        fault = self.first_divergent
        return "\n".join([*lines, *(["", wrapped(fault.told())] if fault else []), self.verdict])


def read_lengths(text: str) -> tuple[int, ...]:
    """``2k,8k,100`` → tokens, the shortest first.

    :raises UsageError: a length is no whole number of 2 or more, with or without a ``k`` behind it.
    """
    found = []
    for part in text.split(","):
        number = part.strip().lower()
        times = THOUSAND if number.endswith("k") else 1
        if not number.removesuffix("k").isdecimal() or int(number.removesuffix("k")) * times < 2:
            raise UsageError(f"--lengths has {part!r}, which is no number of tokens.", hint="Such as 2k,8k,32k (k is 1024).")
        found.append(int(number.removesuffix("k")) * times)
    return tuple(sorted(set(found)))


def compare_lengths(left: "Side", right: "Side", lengths: Sequence[int], rows: Sequence[Sequence[int]], limits: Tolerance, names: tuple[str, str], notes: Sequence[str] = (), quiet: bool = True) -> LengthsComparison:
    """Each context in turn, from empty caches.

    :param rows: prompts, repeated one after the other to fill a context; where there is none, tokens are drawn.
    :raises UsageError: a length is beyond a side's context.
    """
    for side, name in ((left, names[0]), (right, names[1])):
        if lengths[-1] > side.max_context:
            raise UsageError(f"{lengths[-1]} tokens are beyond the context of {side.max_context} of {name}.", hint=f"Build with --max-context {lengths[-1]}, or take shorter --lengths.")
    found, outputs, fault = [], [], None
    with progress.bar("compare lengths", sum(lengths), quiet, bytes=False) as advance:
        for tokens in lengths:
            whole, parts, chunk = _walk(left, right, _fill(rows, tokens, left.config.vocab), limits, advance)
            original = left.config.yarn.original_positions if left.config.yarn else tokens
            found.append(Length(tokens, chunk, max(tokens - original, 0), tuple(part.result() for part in parts)))
            outputs.append(whole.result())
            fault = fault or _fault(tokens, parts, limits)
    return LengthsComparison("differ" if fault else "same", fault, tuple(outputs), tuple(found), *names, limits, tuple(notes))


def _fault(tokens: int, parts: list[Accumulator], limits: Tolerance) -> Divergence | None:
    found = end_to_end(parts, limits)
    return found and replace(found, note=f"in a context of {tokens} tokens; to be told the segment, give --prompts with a line as long, without --lengths")


def chunk_for(tokens: int, heads: int) -> int:
    """Tokens that may go in at once, so that their attention scores over ``tokens`` positions stay within :data:`SCORES`."""
    return max(1, min(CHUNK, SCORES // (4 * COPIES * heads * tokens)))


def _walk(left: "Side", right: "Side", ids: list[int], limits: Tolerance, advance: Callable[[int], None]) -> tuple[Accumulator, list[Accumulator], int]:
    import numpy as np

    tokens = len(ids)
    chunk = min(chunk_for(tokens, left.config.heads), tokens)
    whole, parts = Accumulator(str(tokens), limits.margin), [Accumulator(f"{tokens} at {part + 1} / {DEPTHS}", limits.margin) for part in range(DEPTHS)]
    runs, row = [side.begin(tokens) for side in (left, right)], np.asarray([ids], np.int64)
    for begin in range(0, tokens, chunk):
        given = row[:, begin : begin + chunk]
        ours, theirs = (run.step(given, begin) for run in runs)
        whole.add(ours, theirs, 0, begin)
        for part, inside in _depths(begin, given.shape[1], tokens):
            parts[part].add(ours[inside], theirs[inside], 0, begin + inside.start)
        advance(given.shape[1])
    return whole, [part for part in parts if part.tokens], chunk


def _depths(begin: int, count: int, tokens: int) -> Iterator[tuple[int, slice]]:
    """Which of ``count`` tokens from ``begin`` on are in which part of the context."""
    bounds = [ceil(part * tokens / DEPTHS) for part in range(DEPTHS + 1)]
    for part, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        first, last = max(low, begin), min(high, begin + count)
        if first < last:
            yield part, slice(first - begin, last - begin)


def _fill(rows: Sequence[Sequence[int]], tokens: int, vocab: int) -> list[int]:
    import random

    if not rows:
        draw = random.Random(tokens)
        return [draw.randrange(vocab) for _ in range(tokens)]
    given = [token for row in rows for token in row]
    return (given * ceil(tokens / len(given)))[:tokens]
