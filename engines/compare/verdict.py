"""From what a walk found to what it means: the first segment beyond its tolerance, which rank it is, and what to look at."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .metrics import Accumulator, SegmentDifference
from .tolerances import Tolerance
from .walk import TENSORS, Walked

DRIFTED = "from here on, own values are further apart than logits may be: the fault lies here or before (--mode segments)"
ALONE = 0.1
"""A rank is named where no other's part is off by more than this share of its own."""
END_TO_END = "end to end"
"""In the place of a tensor: the logits of whole chains."""
SAME_PARTS = 1e-3
"""Parts agree where they are off by less than this share of what their sum is off by."""


@dataclass(frozen=True)
class Divergence:
    """The worst offence of the first segment beyond its tolerance."""

    segment: str
    rank: int | None
    """Where the sides' plans are equal and one rank's part alone is off."""
    token: int | None
    """Position in its prompt of the token that is furthest off."""
    metric: str
    value: float
    tolerance: float
    tensor: str
    """``hidden``, ``update``, ``latents`` or ``logits`` of the segment; ``end to end``: of the logits of whole chains."""
    prompt: int | None = None
    note: str = ""
    """What it looks like, in words."""
    inside: tuple[str, ...] = ()
    """What the two graphs of the segment hold or make differently, a line each."""

    def told(self) -> str:
        rank = f"rank {self.rank}, " if self.rank is not None else ""
        where = END_TO_END if self.tensor == END_TO_END else f"{self.segment} ({rank}{self.tensor})"
        at = "" if self.token is None else f", furthest at token {self.token} of prompt {self.prompt}, counted from 0"
        told = f"{'' if self.tensor == END_TO_END else 'first '}apart: {where}: {self.metric} {self.value:.3g} is beyond {self.tolerance:.3g}{at}"
        return "\n".join([told, *([self.note] if self.note else []), *(f"- {line}" for line in self.inside)])


def wrapped(text: str) -> str:
    """For a terminal of 80 columns; what follows the first line of each is indented."""
    return "\n".join(textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) for line in text.splitlines())


def end_to_end(sums: Iterable[Accumulator], limits: Tolerance) -> Divergence | None:
    """The first limit that logits break."""
    for one in (one for one in sums if one.tokens):
        judged, (_, prompt, token) = one.judged(limits.outliers) | {"top1_flips": one.flipped / one.tokens}, one.worst
        for metric, value in judged.items():
            limit = getattr(limits, metric)
            if limit is not None and not value <= limit:  # NaN is a fault
                return Divergence("head", None, token, metric, value, limit, END_TO_END, prompt)
    return None


def first_apart(walk: Sequence[Walked], limits: Tolerance) -> Divergence | None:
    """The first segment, in the order they run, that makes something else of the same values."""
    for walked in walk:
        mine = limits.of(walked.name)
        for name in TENSORS:
            if name in walked.gaps:
                found = walked.gaps[name].result()
                fault = _beyond(found, mine)
                if fault:
                    metric, value, limit = fault
                    return Divergence(walked.name, _rank(walked, name), found.token, metric, value, limit, name, found.prompt, _looks_like(walked, found, metric))
    return None


def _beyond(found: SegmentDifference, limits: Tolerance) -> tuple[str, float, float] | None:
    judged = (("relative_l2", found.relative_l2, limits.segment), ("token_relative_l2", found.token_relative_l2, limits.token), ("experts_changed", found.experts_changed, limits.experts))
    return next(((metric, value, limit) for metric, value, limit in judged if value is not None and not value <= limit), None)


def first_drifted(walk: Sequence[Walked], limits: Tolerance) -> Divergence | None:
    """Judged at the logits; where they are apart, the first segment whose values are as far apart as logits may be."""
    fault = end_to_end((walked.logits for walked in walk if walked.logits), limits)
    if fault is None:
        return None
    for walked in walk:
        for name in TENSORS:
            found = walked.gaps[name].result() if name in walked.gaps else None
            if found and found.relative_l2 is not None and not found.relative_l2 <= limits.relative_l2:
                return Divergence(walked.name, None, found.token, "relative_l2", found.relative_l2, limits.relative_l2, name, found.prompt, DRIFTED)
    return fault


def _rank(walked: Walked, tensor: str) -> int | None:
    """The one rank whose part is off, or whose copy of what all ranks hold."""
    summed = ("hidden",) if walked.name == "embed" else ("update", "logits")
    off = {} if tensor in summed and _parts_agree(walked) else walked.parts if tensor in summed else walked.off.get(tensor, {})
    if not off:
        return None
    worst = max(off, key=off.get)
    return worst if all(value <= ALONE * off[worst] for rank, value in off.items() if rank != worst) else None


def _parts_agree(walked: Walked) -> bool:
    total = max((gap.max_abs for gap in walked.gaps.values()), default=0.0)
    return bool(walked.parts) and max(walked.parts.values()) <= SAME_PARTS * total


def _looks_like(walked: Walked, found: SegmentDifference, metric: str) -> str:
    """A hint at the cause, from what is apart and what is not."""
    apart = [side for side, ranks in walked.ranks.items() if any(ranks.values())]
    if apart and found.tensor != "latents":
        return f"the ranks of the {' and '.join(apart)} side do not agree on the result: a collective is missing behind this segment, or out of step"
    if _parts_agree(walked):
        return "every rank's part agrees: what joins the parts does not"
    if metric == "experts_changed" or (found.experts_changed or 0) > 0:
        return f"{found.experts_changed:.1%} of the tokens go to other experts: look at the norm, the router, its bias, its groups"
    if found.tensor == "hidden" and walked.name != "embed":
        return "the residual stream is not the sum of what the segment was given"
    if found.tensor == "latents":
        return "the cache's new rows differ: kv_a, kv_norm, the rotation of keys, or the position that they are written to"
    if walked.name.endswith(".moe_ffn") and found.experts_changed == 0:
        return "all tokens go to the same experts on both sides: look at the weights of norm, experts and shared experts, at scales, at the routing weights"
    if walked.name.endswith(".attention") and "latents" in walked.gaps:
        return "the cache's new rows agree: look at queries, their rotation, the softmax scale, v_up and o"
    return ""
