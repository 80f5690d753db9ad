"""Perplexity and KL divergence on a model folder's held-out text: the one evaluation that all INT8 figures share.

Documents of ``heldout.txt`` form one stream, ``bos document eos bos document eos …``, cut into windows; every window is
run by itself, and every token of a window but the first is predicted from those before it.
"""

import json
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np

from engines.compare.metrics import divergence, log_softmax
from engines.runtime.text import Text

SEPARATOR = "\n%\n"
"""What stands between two documents of a file; `examples/tiny_text.py` writes it."""


def windows(model: Path, tokens: int = 512) -> list[list[int]]:
    """All held-out tokens in their order, ``tokens`` in each window and what is left in the last.

    :param model: folder with heldout.txt, tokenizer.json and config.json
    """
    config = json.loads((model / "config.json").read_text())
    text = Text(model, config["bos_token_id"])
    documents = (model / "heldout.txt").read_text(encoding="utf-8").removesuffix("\n").split(SEPARATOR)
    stream = [token for document in documents for token in (*text.encode(document), config["eos_token_id"])]
    cut = [stream[start : start + tokens] for start in range(0, len(stream), tokens)]
    return [window for window in cut if len(window) > 1]


@dataclass
class Score:
    """Sums over windows of what a quantised model costs and how far it is from the float32 model."""

    predicted: int = 0
    """Tokens that had another before them in their window."""
    seen: int = 0
    """All tokens: KL is taken after each of them."""
    nll_sum: float = 0.0
    kl_sum: float = 0.0

    def add(self, reference: np.ndarray, logits: np.ndarray, window: list[int]) -> None:
        """Count one window.

        :param reference: logits of the float32 model. *Shape:* ``(tokens, vocab)``
        :param logits: logits of the quantised model. *Shape:* ``(tokens, vocab)``
        """
        if not len(reference) == len(logits) == len(window):
            raise ValueError(f"{len(window)} tokens but {len(reference)} and {len(logits)} rows of logits.")
        left, right = reference.astype(np.float64), logits.astype(np.float64)
        self.nll_sum -= float(log_softmax(right[:-1])[np.arange(len(window) - 1), window[1:]].sum())
        self.kl_sum += float(divergence(left, right).sum())
        self.predicted += len(window) - 1
        self.seen += len(window)

    @property
    def perplexity(self) -> float:
        """Of the quantised model, over `predicted` tokens."""
        return exp(self.nll_sum / self.predicted)

    @property
    def kl(self) -> float:
        """Mean over `seen` tokens of KL(float32‖quantised), in nats."""
        return self.kl_sum / self.seen
