"""How far two sides are apart: pure functions of float32 arrays, accumulated in float64."""

from dataclasses import dataclass, field
from math import ceil, inf, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TOP = 5
"""Likeliest tokens whose overlap is counted."""
FLOOR = 1e-3
"""A token's length counts as no less than this share of the longest token's: of next to nothing, any rest is much."""


@dataclass(frozen=True)
class Difference:
    """Logits of two sides, over all tokens of all prompts."""

    name: str
    max_abs: float
    cosine: float
    """Of both sides taken as one long vector each."""
    relative_l2: float
    """Length of the difference over the length of the left side."""
    kl: float
    """Mean over tokens of KL(left‖right) of the softmaxes, in nats."""
    top1_agreement: float
    """Share of tokens whose likeliest next token is the same."""
    top5_overlap: float
    """Mean share of the five likeliest tokens that are among the other's five."""
    top1_flips: float
    """Share of tokens whose likeliest next token differs though left's led by more than ``margin``."""
    margin: float
    """In logits: a lead that rounding may turn over."""
    snr_db: float | None
    """20 · log10 of length over difference; None where nothing differs."""
    tokens: int


@dataclass(frozen=True)
class SegmentDifference:
    """One result of one segment, over all tokens of all prompts."""

    segment: str
    tensor: str
    """``hidden``, ``update``, ``latents`` or ``logits``."""
    tokens: int
    max_abs: float | None
    """This and what follows: None where all tokens go to other experts."""
    relative_l2: float | None
    cosine: float | None
    snr_db: float | None
    token_relative_l2: float | None
    """Of the token that is furthest off."""
    prompt: int | None
    token: int | None
    """Where that token is: prompt, and position in it; None where nothing differs."""
    experts_changed: float | None
    """Share of tokens that go to other experts; they are left out of the other figures. None where nothing is chosen."""


def snr(relative_l2: float) -> float | None:
    """Signal to noise in dB; None for no noise, and for what is not a number."""
    return -20 * log10(relative_l2) if 0 < relative_l2 < inf else None


class Accumulator:
    """Differences of logits, prompt by prompt, without keeping them.

    :param margin: in logits: a flip of the likeliest token counts where left's led by more.
    """

    def __init__(self, name: str, margin: float = 0.0) -> None:
        self.name, self.margin = name, margin
        self.tokens = self.agreed = self.flipped = 0
        self.max_abs = self.kl = self.dot = self.left = self.right = self.gap = self.overlap = 0.0
        self.worst: tuple[float, int, int] = (-1.0, 0, 0)
        """KL of the worst token, its prompt and its position."""
        self.by_token: list[np.ndarray] = []
        """Of each addition: squared difference, squared length of left, KL. *Shape:* ``(3, tokens)``"""

    def add(self, left: "np.ndarray", right: "np.ndarray", prompt: int = 0, start: int = 0) -> None:
        """:param left, right: *Shape:* ``(tokens, vocab)``. :param start: position of the first token."""
        import numpy as np

        if not len(left):
            return
        a, b = left.astype(np.float64), right.astype(np.float64)
        apart = a.argmax(-1) != b.argmax(-1)
        self.tokens += len(a)
        self.agreed += int((~apart).sum())
        self.flipped += int((apart & (lead(a) > self.margin)).sum())
        self.overlap += overlap(a, b, min(TOP, a.shape[-1]))
        self.max_abs = float(np.maximum(self.max_abs, np.abs(a - b).max()))
        by_token = divergence(a, b)
        self.kl += float(by_token.sum())
        self.dot += float((a * b).sum())
        self.left += float((a * a).sum())
        self.right += float((b * b).sum())
        self.gap += float(((a - b) ** 2).sum())
        place = int(np.nan_to_num(by_token, nan=inf).argmax())
        self.worst = max(self.worst, (float(np.nan_to_num(by_token[place], nan=inf)), prompt, start + place))
        self.by_token.append(np.stack([((a - b) ** 2).sum(-1), (a * a).sum(-1), by_token]))

    def judged(self, outliers: float) -> dict[str, float]:
        """``relative_l2`` and ``kl`` without a share of the tokens, rounded up: those furthest apart."""
        import numpy as np

        gap, left, by_token = np.concatenate(self.by_token, axis=1)
        kept = np.argsort(-np.nan_to_num(gap / np.maximum(left, 1e-300), nan=inf), kind="stable")[ceil(outliers * self.tokens) :]
        return {"relative_l2": float((gap[kept].sum() / max(left[kept].sum(), 1e-300)) ** 0.5), "kl": float(by_token[kept].mean()) if len(kept) else 0.0}

    def result(self) -> Difference:
        count, distance = max(self.tokens, 1), (self.gap / max(self.left, 1e-300)) ** 0.5
        return Difference(
            self.name,
            max_abs=self.max_abs,
            cosine=self.dot / max((self.left * self.right) ** 0.5, 1e-300),
            relative_l2=distance,
            kl=self.kl / count,
            top1_agreement=self.agreed / count,
            top5_overlap=self.overlap / count,
            top1_flips=self.flipped / count,
            margin=self.margin,
            snr_db=snr(distance),
            tokens=self.tokens,
        )


@dataclass
class Gap:
    """One result of one segment, step by step."""

    segment: str
    tensor: str
    tokens: int = 0
    max_abs: float = 0.0
    dot: float = 0.0
    left: float = 0.0
    right: float = 0.0
    gap: float = 0.0
    worst: tuple[float, int, int] = (0.0, 0, 0)
    changed: int | None = None
    by_token: "dict[int, list[np.ndarray]]" = field(default_factory=dict)
    """Prompt → each step's relative distances, token by token; NaN for tokens that go to other experts."""

    def add(self, left: "np.ndarray", right: "np.ndarray", prompt: int, start: int, moved: "np.ndarray | None" = None) -> float:
        """:param left, right: *Shape:* ``(tokens, width)``. :param moved: tokens that go to other experts. :returns: the worst token's relative distance."""
        import numpy as np

        kept = np.ones(len(left), bool) if moved is None else ~moved
        self.tokens += len(left)
        self.changed = None if moved is None else (self.changed or 0) + int(moved.sum())
        errors = token_distances(left, right)
        self.by_token.setdefault(prompt, []).append(np.where(kept, errors, np.nan).astype(np.float32))
        if not kept.any():
            return 0.0
        a, b = left[kept].astype(np.float64), right[kept].astype(np.float64)
        self.max_abs = float(np.maximum(self.max_abs, np.abs(a - b).max()))
        self.dot, self.left, self.right = self.dot + float((a * b).sum()), self.left + float((a * a).sum()), self.right + float((b * b).sum())
        self.gap += float(((a - b) ** 2).sum())
        place = int(np.where(kept, errors, -1).argmax())
        self.worst = max(self.worst, (float(errors[place]), prompt, start + place))
        return float(errors[place])

    def result(self) -> SegmentDifference:
        if self.changed is not None and self.changed == self.tokens:
            return SegmentDifference(self.segment, self.tensor, self.tokens, *[None] * 7, experts_changed=1.0)
        distance = (self.gap / max(self.left, 1e-300)) ** 0.5
        far, prompt, token = self.worst
        return SegmentDifference(
            self.segment,
            self.tensor,
            tokens=self.tokens,
            max_abs=self.max_abs,
            relative_l2=distance,
            cosine=self.dot / max((self.left * self.right) ** 0.5, 1e-300) if self.left or self.right else 1.0,
            snr_db=snr(distance),
            token_relative_l2=far,
            prompt=prompt if far else None,
            token=token if far else None,
            experts_changed=None if self.changed is None else self.changed / max(self.tokens, 1),
        )


def token_distances(left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """Relative distance of each token, infinite where it is not a number. *Shape:* float64 ``(tokens)``"""
    import numpy as np

    lengths = np.linalg.norm(left.astype(np.float64), axis=-1)
    floor = max(float(np.nan_to_num(lengths).max(initial=0.0)) * FLOOR, 1e-30)
    return np.nan_to_num(np.linalg.norm(left.astype(np.float64) - right, axis=-1) / np.maximum(lengths, floor), nan=inf)


def divergence(left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """KL(left‖right) of the softmaxes of logits, in nats, by token. *Shape:* ``(tokens)``"""
    import numpy as np

    p, q = log_softmax(left), log_softmax(right)
    return (np.exp(p) * (p - q)).sum(-1)


def log_softmax(logits: "np.ndarray") -> "np.ndarray":
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def lead(logits: "np.ndarray") -> "np.ndarray":
    """How far each token's likeliest next token is above the second. *Shape:* ``(tokens)``"""
    import numpy as np

    if logits.shape[-1] < 2:
        return np.full(len(logits), inf)
    best = np.partition(logits, -2, axis=-1)
    return best[:, -1] - best[:, -2]


def overlap(left: "np.ndarray", right: "np.ndarray", count: int) -> float:
    """Sum over tokens of the share of left's ``count`` likeliest that are among right's."""
    import numpy as np

    ours, theirs = (np.argpartition(-side, count - 1, axis=-1)[:, :count] for side in (left, right))
    return float((ours[:, :, None] == theirs[:, None, :]).any(-1).mean(-1).sum())


def moved_tokens(left: "np.ndarray | None", right: "np.ndarray | None") -> "np.ndarray | None":
    """Which tokens go to other experts. *Shape:* bool ``(tokens)``; None where either side does not tell."""
    import numpy as np

    if left is None or right is None or left.shape != right.shape:
        return None
    return (np.sort(left, -1) != np.sort(right, -1)).any(-1)
