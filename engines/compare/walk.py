"""Two sides over the same tokens, in step: end to end, segment by segment, or each on its own values.

The walk goes segment by segment, all prompts through each, as calibration does: at any time one segment of each side is in
memory, and what prompts carry from segment to segment.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from exporter.errors import UsageError

from ..prompts import require_vocabulary
from .metrics import Accumulator, Gap, moved_tokens
from .sides import Given, Made, Side, segment_names, steps, teacher_forced

if TYPE_CHECKING:
    import numpy as np

DECODE = 8
"""Tokens of each prompt that go in one by one, as in decoding."""
TENSORS = ("hidden", "latents", "update", "logits")
"""In the order in which a segment makes them: what was wrong first is told first."""

Advance = Callable[[int], None]


def silent(count: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Example:
    """One step of one segment, with what both sides made of it: enough to do it again."""

    segment: str
    prompt: int
    given: Given
    cache: "dict[str, np.ndarray]"
    """Before the step, of the left side."""
    left: Made
    right: Made
    tensor: str
    distance: float
    """Of the worst token, and the share of tokens that go to other experts."""


@dataclass
class Stream:
    """What one prompt carries from segment to segment. *Shape:* ``(1, tokens, hidden)`` each."""

    token_ids: "np.ndarray"
    hidden: "np.ndarray | None" = None
    update: "np.ndarray | None" = None

    def given(self, part: slice) -> Given:
        hidden, update = (None if value is None else value[:, part] for value in (self.hidden, self.update))
        return Given(self.token_ids[:, part], part.start, hidden, update)

    def take(self, made: "list[dict[str, np.ndarray]]") -> None:
        """What a segment made of all steps."""
        import numpy as np

        for name in ("hidden", "update"):
            found = [one[name] for one in made if name in one]
            setattr(self, name, np.concatenate(found)[None] if found else None)


@dataclass
class Walked:
    """What a walk found of one segment."""

    name: str
    gaps: dict[str, Gap] = field(default_factory=dict)
    example: Example | None = None
    """The step with the worst token."""
    ranks: dict[str, dict[int, float]] = field(default_factory=dict)
    """``left`` or ``right`` → rank → largest difference of its results from the first rank's; sound ranks have none."""
    off: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of a side whose ranks do not agree: result → rank → largest difference from the other side's."""
    parts: dict[int, float] = field(default_factory=dict)
    """Rank → largest difference of its part before the collective; empty where the plans differ."""
    moved: "dict[int, list[np.ndarray]]" = field(default_factory=dict)
    """Prompt → each step's tokens that go to other experts."""
    logits: Accumulator | None = None
    """Of the head."""


def require_comparable(left: Side, right: Side) -> None:
    """:raises UsageError: their logits or segments are not of the same shape."""
    pairs = [("vocabularies", "vocab", "tokens"), ("numbers of layers", "layers", "layers"), ("widths", "hidden", "channels")]
    for what, name, unit in pairs:
        ours, theirs = getattr(left.config, name), getattr(right.config, name)
        if ours != theirs:
            raise UsageError(f"the {what} differ: {ours} and {theirs} {unit}.", hint="Compare engines of one model.")


def require_lengths(left: Side, right: Side, prompts: Sequence[Sequence[int]]) -> None:
    """:raises UsageError: a prompt is too long for a side, or a token is beyond the vocabulary."""
    most = min(left.max_context, right.max_context)
    for number, prompt in enumerate(prompts):
        if len(prompt) > most:
            raise UsageError(f"prompt {number}, counted from 0, has {len(prompt)} tokens, beyond the context of {most}.", hint="Take shorter prompts, or build with a larger --max-context.")
    require_vocabulary(prompts, left.config.vocab, UsageError)


def walk_logits(left: Side, right: Side, prompts: Iterable[Sequence[int]], margin: float, decode: int = DECODE, advance: Advance = silent, keep: Callable[..., None] = lambda *pair: None) -> tuple[Accumulator, Accumulator]:
    """Logits of all prompts, teacher-forced: of tokens that went in as a prompt, and of those that went in one by one.

    :param keep: called with each pair of logits, for whoever draws them.
    """
    sums = Accumulator("logits", margin), Accumulator("decode", margin)
    for number, prompt in enumerate(prompts):
        begin = 0
        for total, ours, theirs in zip(sums, teacher_forced(left, prompt, decode), teacher_forced(right, prompt, decode), strict=True):
            total.add(ours, theirs, number, begin)
            keep(number, begin, ours, theirs)
            begin += len(ours)
        advance(1)
    return sums


def walk_segments(left: Side, right: Side, prompts: Sequence[Sequence[int]], margin: float = 0.0, own: bool = False, decode: int = DECODE, advance: Advance = silent) -> list[Walked]:
    """Every segment of both sides.

    :param own: each side goes on with its own values; else both get the left side's, so that no error is carried on.
    """
    import numpy as np

    ours = [Stream(np.asarray([prompt], np.int64)) for prompt in prompts]
    theirs = [replace(stream) for stream in ours] if own else ours
    found = []
    for name in segment_names(left.config):
        walked = Walked(name, logits=Accumulator("logits" if own else "head", margin) if name == "head" else None)
        with ExitStack() as stack:
            pair = [stack.enter_context(side.open(name)) for side in (left, right)]
            for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                _walk_prompt(walked, pair, number, mine, other, decode)
        found.append(walked)
        advance(1)
    return found


def _walk_prompt(walked: Walked, pair: list[Any], prompt: int, mine: Stream, other: Stream, decode: int) -> None:
    tokens = mine.token_ids.shape[1]
    states, results = [segment.begin(tokens) for segment in pair], ([], [])
    for part in steps(tokens, decode):
        given = mine.given(part)
        before = pair[0].cache(states[0])
        left, right = pair[0].run(given, states[0]), pair[1].run(other.given(part), states[1])
        _note(walked, prompt, given, before, left, right)
        results[0].append(left.first)
        results[1].append(right.first)
    mine.take(results[0])
    if other is not mine:
        other.take(results[1])


def _note(walked: Walked, prompt: int, given: Given, before: "dict[str, np.ndarray]", left: Made, right: Made) -> None:
    """Take one step of both sides into account."""
    moved = moved_tokens(left.experts, right.experts)
    if moved is not None:
        walked.moved.setdefault(prompt, []).append(moved)
    for name in TENSORS:
        if name not in left.first or name not in right.first:
            continue
        gap = walked.gaps.setdefault(name, Gap(walked.name, name))
        ours, theirs = _furthest(left, right, name)
        distance = gap.add(ours, theirs, prompt, given.start, moved if name == "update" else None)
        if walked.logits is not None:
            walked.logits.add(ours, theirs, prompt, given.start)
        # Tokens that go elsewhere are left out of the distance, and are what an example should show.
        distance += 0.0 if moved is None else float(moved.mean())
        if walked.example is None or distance > walked.example.distance:
            walked.example = Example(walked.name, prompt, given, before, left, right, name, distance)
    for side, made, other in (("left", left, right), ("right", right, left)):
        seen = walked.ranks.setdefault(side, {})
        for rank, values in made.ranks.items():
            _raise(seen, rank, max(apart(value, made.first[name]) for name, value in values.items()))
        for rank, values in made.ranks.items() if any(seen.values()) else ():
            for name in values.keys() & other.first.keys():
                _raise(walked.off.setdefault(name, {}), rank, apart(values[name], other.first[name]))
    if len(left.parts) > 1 and left.parts.keys() == right.parts.keys() and all(left.parts[rank].shape == right.parts[rank].shape for rank in left.parts):
        for rank, part in left.parts.items():
            _raise(walked.parts, rank, apart(part, right.parts[rank]))


def _raise(kept: dict[int, float], rank: int, value: float) -> None:
    kept[rank] = max(kept.get(rank, 0.0), value)


def apart(one: "np.ndarray", other: "np.ndarray") -> float:
    """Largest difference, infinite where it is not a number."""
    import numpy as np

    return 0.0 if np.array_equal(one, other) else float(np.nan_to_num(np.abs(one - other), nan=np.inf).max(initial=0))


def _furthest(left: Made, right: Made, name: str) -> "tuple[np.ndarray, np.ndarray]":
    """The results of the ranks that are furthest apart: sound ranks of a side agree, so that any will do."""
    ours, theirs = (_distinct([values[name] for values in made.ranks.values()]) for made in (left, right))
    pairs = [(one, other) for one in ours for other in theirs]
    return max(pairs, key=lambda pair: apart(*pair)) if len(pairs) > 1 else pairs[0]


def _distinct(values: "list[np.ndarray]") -> "list[np.ndarray]":
    import numpy as np

    found = values[:1]
    for value in values[1:]:
        if not any(np.array_equal(value, other) for other in found):
            found.append(value)
    return found
