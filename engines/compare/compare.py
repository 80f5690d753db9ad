"""``moetrt compare``: are two sides the same model, to rounding, and if not, where do they part?"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import progress
from exporter.errors import RunError, UsageError

from ..prompts import read_prompts, require_vocabulary
from ..runtime.text import Text
from .lengths import LengthsComparison, compare_lengths, read_lengths
from .metrics import Accumulator, Difference, SegmentDifference
from .sides import Side, open_side, segment_names
from .tolerances import Tolerance, read_tolerance, tolerance
from .verdict import END_TO_END, Divergence, end_to_end, first_apart, first_drifted, wrapped
from .walk import (
    DECODE,
    Walked,
    require_comparable,
    require_lengths,
    walk_logits,
    walk_segments,
)
from .zoom import look_inside

if TYPE_CHECKING:
    import numpy as np

MODES = ("logits", "segments", "drift")


@dataclass(frozen=True)
class CompareRequest:
    """What ``moetrt compare`` was asked for."""

    left: Path
    right: Path
    prompts: Path | None = None
    """None: tokens are drawn, for long contexts alone."""
    mode: str = "logits"
    samples: int | None = None
    """Prompts to take; None for all."""
    decode: int = DECODE
    """Tokens at the end of each prompt that go in one by one."""
    tolerance: float | None = None
    """Relative L2 that is allowed end to end, in the table's place."""
    tolerance_file: Path | None = None
    everything: bool = False
    """Walk in all three modes, whatever ``mode`` judges by: for a report."""

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.tolerance_file is not None:
            raise UsageError("--tolerance and --tolerance-file were both given.", hint="The file can set relative_l2.")


@dataclass(frozen=True)
class Comparison:
    """What ``compare --json`` prints."""

    verdict: str
    """``same`` or ``differ``."""
    first_divergent: Divergence | None
    outputs: tuple[Difference, ...]
    mode: str
    left: str
    """Folder and arithmetic."""
    right: str
    prompts: int
    tokens: int
    tolerance: Tolerance
    segments: tuple[SegmentDifference, ...] = ()
    """Of the mode ``segments``, or of ``drift``."""
    notes: tuple[str, ...] = ()
    kind: str = "comparison"
    version: int = 1

    def summary(self) -> str:
        lines = [f"{'output':8} {'tokens':>7} {'max abs':>9} {'rel. L2':>9} {'cosine':>10} {'KL':>9} {'top-1':>8} {'flips':>7}"]
        lines += [f"{one.name:8} {one.tokens:7} {one.max_abs:9.3g} {one.relative_l2:9.3g} {one.cosine:10.7f} {one.kl:9.3g} {one.top1_agreement:8.2%} {one.top1_flips:7.2%}" for one in self.outputs]
        if self.segments:
            lines += ["", *_worst_segments(self.segments, self.mode)]
        lines += [wrapped(f"note: {note}") for note in self.notes]
        fault = self.first_divergent
        return "\n".join([*lines, *(["", wrapped(fault.told())] if fault else []), self.verdict])


SHOWN = 6
"""Segments that a summary lists."""


def _worst_segments(segments: Sequence[SegmentDifference], mode: str) -> list[str]:
    known = [one for one in segments if one.token_relative_l2 is not None]
    worst = sorted(known, key=lambda one: -one.token_relative_l2)[:SHOWN]
    what = "each side on its own values" if mode == "drift" else "both sides given the left's values"
    lines = [f"{what + ':':45} {'rel. L2':>9} {'worst':>9} {'moved':>8}"]
    for one in worst:
        moved = "" if one.experts_changed is None else f"{one.experts_changed:8.2%}"
        lines.append(f"{one.segment + ' ' + one.tensor:45} {one.relative_l2:9.3g} {one.token_relative_l2:9.3g} {moved}".rstrip())
    return [*lines, f"({len(worst)} of {len(segments)} results, by their worst token; moved: tokens to other experts)"]


SAMPLED = 4096
"""Logits that are kept for the report's scatter, at most."""


@dataclass
class Evidence:
    """Everything that was seen: what is judged, what the report draws and what a replay is made of."""

    left: Side
    right: Side
    rows: list[list[int]]
    limits: Tolerance
    logits: tuple[Accumulator, ...] = ()
    segments: list[Walked] = field(default_factory=list)
    drift: list[Walked] = field(default_factory=list)
    comparison: Comparison | None = None
    pairs: "list[tuple[np.ndarray, np.ndarray]]" = field(default_factory=list)
    """Some logits, left and right, token by token."""

    def outputs(self, mode: str) -> tuple[Accumulator, ...]:
        """Logits in the way that a mode makes them."""
        if mode == "logits":
            return self.logits
        return tuple(walked.logits for walked in (self.drift if mode == "drift" else self.segments) if walked.logits)

    def sample(self, prompt: int, start: int, left: "np.ndarray", right: "np.ndarray") -> None:
        """Keep a few of many logits: evenly spread over vocabulary and tokens, the same in every run."""
        room = SAMPLED // max(2 * len(self.rows), 1)
        if left.size and room:
            every = ceil(left.size / room) | 1  # odd: an even step would meet the same few of a vocabulary
            self.pairs.append((left.reshape(-1)[::every].copy(), right.reshape(-1)[::every].copy()))


def compare(request: CompareRequest, quiet: bool = True, then: Callable[[Evidence], Any] = lambda evidence: None) -> Comparison:
    """Open both sides, read the prompts, walk, judge.

    :param then: called with all that was seen while both sides are still open.
    :raises MoetrtError: a side cannot be opened, or the two cannot be compared in this mode.
    """
    with contextlib.closing(open_side(request.left)) as left, contextlib.closing(open_side(request.right)) as right:
        require_comparable(left, right)
        rows = [row for row in read_prompts(request.prompts, partial(text_of, left, right), request.samples) if row]
        require_lengths(left, right, rows)
        seen = judge(request, left, right, rows, notes_on(left, right), quiet)
        then(seen)
        return seen.comparison


def compare_at_lengths(request: CompareRequest, quiet: bool = True, lengths: str = "2k,8k,32k") -> LengthsComparison:
    """Parity over long contexts, of the prompts one after the other or of tokens that are drawn.

    :raises MoetrtError: a side cannot be opened, or is not built for such lengths.
    """
    wanted = read_lengths(lengths)
    with contextlib.closing(open_side(request.left)) as left, contextlib.closing(open_side(request.right)) as right:
        require_comparable(left, right)
        rows = read_prompts(request.prompts, partial(text_of, left, right), request.samples) if request.prompts else []
        require_vocabulary(rows, left.config.vocab, UsageError)
        return compare_lengths(left, right, wanted, rows, limits_of(request, left, right), names_of(request, left, right), notes_on(left, right), quiet)


def names_of(request: CompareRequest, left: Side, right: Side) -> tuple[str, str]:
    """Both sides: folder and arithmetic."""
    return f"{request.left} ({left.arithmetic})", f"{request.right} ({right.arithmetic})"


def limits_of(request: CompareRequest, left: Side, right: Side) -> Tolerance:
    """The table's, or what the user set."""
    known = tolerance(left.arithmetic, right.arithmetic, left.identity == right.identity)
    if request.tolerance is not None:
        return replace(known, relative_l2=request.tolerance, outliers=0.0, kl=None, top1_flips=None, because="--tolerance")
    return read_tolerance(request.tolerance_file, known) if request.tolerance_file else known


def judge(request: CompareRequest, left: Side, right: Side, rows: list[list[int]], notes: Sequence[str] = (), quiet: bool = True) -> Evidence:
    """Walk in the mode that was asked for; where logits differ, segment by segment too, to say where."""
    limits = limits_of(request, left, right)
    seen = Evidence(left, right, rows, limits)
    sealed = left.sealed or right.sealed
    if sealed and request.mode != "logits":
        raise RunError(f"--mode {request.mode} walks segment by segment; {sealed}.", hint=OUTSIDE)
    wanted = MODES if request.everything and not sealed else (request.mode,)
    walks = {"logits": _logits, "segments": partial(_segments, own=False), "drift": partial(_segments, own=True)}
    for mode in wanted:
        walks[mode](request, seen, quiet)
    fault, told = FAULTS[request.mode](seen), [*notes, *_unmatched(limits, left)]
    told += [f"{sealed}: nothing is told of single segments. {OUTSIDE}"] if sealed and (fault or request.everything) else []
    if fault and request.mode == "logits" and not sealed:
        if not seen.segments:
            _segments(request, seen, quiet, own=False)
        part = first_apart(seen.segments, limits)
        told += [] if part else [GROWS]
        fault = part or fault
    example = {walked.name: walked.example for walked in seen.segments}.get(fault.segment) if fault else None
    if example and fault.tensor != END_TO_END:
        fault = replace(fault, inside=look_inside(left, right, example, fault.rank))
        told += [] if fault.inside else [SAME_PLAN]
    ours, theirs = names_of(request, left, right)
    shown = seen.drift if request.mode == "drift" else seen.segments
    seen.comparison = Comparison(
        verdict="differ" if fault else "same",
        first_divergent=fault,
        outputs=tuple(one.result() for one in seen.outputs(request.mode) if one.tokens),
        mode=request.mode,
        left=ours,
        right=theirs,
        prompts=len(rows),
        tokens=sum(map(len, rows)),
        tolerance=limits,
        segments=tuple(gap.result() for walked in shown for gap in walked.gaps.values()),
        notes=tuple(told),
    )
    return seen


FAULTS: dict[str, Callable[[Evidence], Divergence | None]] = {
    "logits": lambda seen: end_to_end(seen.logits, seen.limits),
    "segments": lambda seen: first_apart(seen.segments, seen.limits),
    "drift": lambda seen: first_drifted(seen.drift, seen.limits),
}
"""Mode → how its evidence is judged."""
SAME_PLAN = "compare with graphs or engines of the same plan (moetrt export MODEL --tensor N) to be told the rank and what differs inside the segment"
OUTSIDE = "Build it with --segments to walk it, or compare by --mode logits; --build-only holds the plan against its graphs."
GROWS = "each segment alone is within its tolerance: the difference grows along the chain (--mode drift), or lies in how the graph is run as a whole"


def _unmatched(limits: Tolerance, side: Side) -> list[str]:
    """Patterns of a file of limits that are of no segment."""
    names = segment_names(side.config)
    return [f"--tolerance-file: {pattern} is of no segment; they are called {names[1]}, {names[2]}, …" for pattern in limits.by_segment if not any(fnmatchcase(name, pattern) for name in names)]


def _logits(request: CompareRequest, seen: Evidence, quiet: bool) -> None:
    with progress.bar("compare logits", len(seen.rows), quiet, bytes=False) as advance:
        seen.logits = walk_logits(seen.left, seen.right, seen.rows, seen.limits.margin, request.decode, advance, seen.sample)


def _segments(request: CompareRequest, seen: Evidence, quiet: bool, own: bool) -> None:
    name = "drift" if own else "segments"
    with progress.bar(f"compare {name}", len(segment_names(seen.left.config)), quiet, bytes=False) as advance:
        setattr(seen, name, walk_segments(seen.left, seen.right, seen.rows, seen.limits.margin, own, request.decode, advance))


def text_of(*sides: Side) -> Text:
    """The tokenizer of the first side that has one."""
    having = [side for side in sides if (side.folder / "tokenizer.json").is_file()] or list(sides)
    return Text(having[0].folder, having[0].config.bos)


def notes_on(left: Side, right: Side) -> list[str]:
    """Said, not refused: what the user should know about the pair."""
    prints = {side.fingerprint for side in (left, right)} - {None}
    return ["the two sides were made from different checkpoints."] if len(prints) > 1 else []
