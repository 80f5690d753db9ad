"""Two sides over the same tokens, teacher-forced: are they the same model, to rounding?"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.plan import manifest as records

from ..prompts import read_prompts
from ..runtime.chain import Chain
from ..runtime.loading import load
from ..runtime.text import Text
from .metrics import Accumulator, Difference
from .tolerances import Tolerance, tolerance


@dataclass(frozen=True)
class Divergence:
    """The worst offence of the first output beyond its tolerance."""

    segment: str
    rank: int | None
    token: int | None
    metric: str
    value: float
    tolerance: float


@dataclass(frozen=True)
class Comparison:
    """What ``compare --json`` prints."""

    verdict: str
    """``same`` or ``differ``."""
    first_divergent: Divergence | None
    outputs: tuple[Difference, ...]

    def summary(self) -> str:
        lines = [f"{'output':10} {'max abs':>10} {'rel. L2':>10} {'cosine':>10} {'KL':>10} {'top-1':>7}"]
        lines += [
            f"{one.name:10} {one.max_abs:10.3g} {one.relative_l2:10.3g} {one.cosine:10.7f} {one.kl:10.3g} {one.top1_agreement:7.2%}" for one in self.outputs
        ]
        fault = self.first_divergent
        if fault:
            lines.append(f"{fault.segment}: {fault.metric} {fault.value:.3g} is beyond {fault.tolerance:.3g}")
        return "\n".join([*lines, self.verdict])


def open_side(path: Path) -> Any:
    """A chain for a folder of engines or graphs, transformers for a checkpoint."""
    if (path / "config.json").is_file() and not (path / records.MANIFEST).is_file():
        from .reference import Reference

        return Reference(path)
    return load(path, joined=False)


def compare_logits(left: Any, right: Any, prompts: Iterable[list[int]], limits: Tolerance | None = None) -> Comparison:
    """Logits of every token of every prompt.

    :param limits: those of the looser of the two by default.
    """
    if left.config.vocab != right.config.vocab:
        raise UsageError(f"the vocabularies differ: {left.config.vocab} and {right.config.vocab} tokens.", hint="Compare engines of one model.")
    sums = Accumulator("logits")
    for prompt in prompts:
        sums.add(left.logits(prompt), right.logits(prompt))
    found = sums.result()
    fault = _fault(found, limits or tolerance(left.arithmetic, right.arithmetic))
    return Comparison("differ" if fault else "same", fault, (found,))


def _fault(found: Difference, limits: Tolerance) -> Divergence | None:
    for metric in ("relative_l2", "kl"):
        value, limit = getattr(found, metric), getattr(limits, metric)
        if not value <= limit:  # NaN is a fault
            return Divergence("head", None, None, metric, value, limit)
    return None


def text_of(*sides: Any) -> Text:
    """The tokenizer of the first side that has one."""
    having = [side for side in sides if (side.folder / "tokenizer.json").is_file()] or list(sides)
    return Text(having[0].folder, having[0].config.bos)


def note_on_sources(left: Any, right: Any) -> str | None:
    """Said, not refused: folders from different checkpoints may be compared."""
    prints = [side.records[0].source.fingerprint for side in (left, right) if isinstance(side, Chain)]
    return "the two sides were made from different checkpoints." if len(set(prints)) > 1 else None


def with_limits(left: Any, right: Any, relative_l2: float | None) -> Tolerance:
    """The table's limits, or the user's."""
    return tolerance(left.arithmetic, right.arithmetic) if relative_l2 is None else Tolerance(relative_l2, float("inf"), "--tolerance")


def compare_folders(left: Path, right: Path, prompts: Path, samples: int | None, relative_l2: float | None, note: Callable[[str], None]) -> Comparison:
    """Open both sides, read the prompts, compare.

    :param note: told what the user should know about the pair.
    """
    with contextlib.closing(open_side(left)) as one, contextlib.closing(open_side(right)) as other:
        said = note_on_sources(one, other)
        if said:
            note(f"Note: {said}")
        rows = read_prompts(prompts, partial(text_of, one, other), samples)
        return compare_logits(one, other, rows, with_limits(one, other, relative_l2))
