"""How far two sets of logits are apart: pure functions of float32 arrays, accumulated in float64."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Difference:
    """One output of two chains, over all tokens of all prompts."""

    name: str
    max_abs: float
    cosine: float
    """Of both outputs taken as one long vector each."""
    relative_l2: float
    """Length of the difference over the length of the left output."""
    kl: float
    """Mean over tokens of KL(left‖right) of the softmaxes, in nats."""
    top1_agreement: float
    """Share of tokens whose likeliest next token is the same."""


class Accumulator:
    """Differences of logits, prompt by prompt, without keeping them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens = self.agreed = 0
        self.max_abs = self.kl = self.dot = self.left = self.right = self.gap = 0.0

    def add(self, left: "np.ndarray", right: "np.ndarray") -> None:
        """:param left, right: *Shape:* ``(tokens, vocab)``"""
        import numpy as np

        a, b = left.astype(np.float64), right.astype(np.float64)
        self.tokens += len(a)
        self.agreed += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max()))
        self.kl += float(divergence(a, b).sum())
        self.dot += float((a * b).sum())
        self.left += float((a * a).sum())
        self.right += float((b * b).sum())
        self.gap += float(((a - b) ** 2).sum())

    def result(self) -> Difference:
        return Difference(
            self.name,
            max_abs=self.max_abs,
            cosine=self.dot / max((self.left * self.right) ** 0.5, 1e-300),
            relative_l2=(self.gap / max(self.left, 1e-300)) ** 0.5,
            kl=self.kl / self.tokens,
            top1_agreement=self.agreed / self.tokens,
        )


def divergence(left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """KL(left‖right) of the softmaxes of logits, in nats, by token. *Shape:* ``(tokens)``"""
    import numpy as np

    p, q = log_softmax(left), log_softmax(right)
    return (np.exp(p) * (p - q)).sum(-1)


def log_softmax(logits: "np.ndarray") -> "np.ndarray":
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
