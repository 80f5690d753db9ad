"""The parts of a decoder that need no knowledge of attention or experts, as they are traced.

Weights of linears lie ``[in, out]``, so that a graph multiplies without transposing. Every module is traced on fake
tensors: nothing here ever holds a real weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..plan.config import ModelConfig


class Linear(nn.Module):
    """``x @ weight``, with the weight ``(inputs, outputs)``."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Norm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, hidden: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate = Linear(hidden, width, dtype)
        self.up = Linear(hidden, width, dtype)
        self.down = Linear(width, hidden, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Embed(nn.Module):
    """Rows of the embedding that this rank owns; zero for the tokens of other ranks.

    :param rows: how many rows of the vocabulary this rank holds.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.whole = rows == config.vocab
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(rows, config.hidden, dtype=dtype), requires_grad=False)
        if not self.whole:
            self.first_row = nn.Parameter(torch.empty((), dtype=torch.int64), requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """:param token_ids: *Shape:* ``(batch, tokens)``. :returns: *Shape:* ``(batch, tokens, hidden)``."""
        if self.whole:
            return functional.embedding(token_ids, self.weight)
        row = token_ids - self.first_row
        mine = (row >= 0) & (row < self.rows)
        found = functional.embedding(torch.where(mine, row, torch.zeros_like(row)), self.weight)
        return torch.where(mine.unsqueeze(-1), found, torch.zeros_like(found))


class DenseFeedForward(nn.Module):
    """Residual, norm and a dense feed-forward: the ``dense_ffn`` segment."""

    def __init__(self, config: ModelConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = Norm(config.hidden, config.norm_epsilon, dtype)
        self.ffn = FeedForward(config.hidden, width, dtype)

    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """:returns: the residual stream that was read, and this rank's part of the next update."""
        hidden = hidden + update
        return hidden, self.ffn(self.norm(hidden))


class Head(nn.Module):
    """Logits of the selected positions over the rows of the vocabulary that this rank owns."""

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = Norm(config.hidden, config.norm_epsilon, dtype)
        self.logits = Linear(config.hidden, rows, dtype)

    def forward(self, hidden: Tensor, update: Tensor, select: Tensor) -> Tensor:
        """:param select: *Shape:* ``(batch, selected)``. :returns: float32 ``(batch, selected, rows)``."""
        row = torch.arange(select.shape[0]).unsqueeze(1).expand_as(select)
        wanted = (hidden + update)[row, select]
        return self.logits(self.norm(wanted)).float()
