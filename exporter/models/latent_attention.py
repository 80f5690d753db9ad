"""Multi-head latent attention over a cache of latents (arXiv 2405.04434 section 2.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..plan.config import ModelConfig
from .blocks import Linear, Norm
from .rope import softmax_scale

LATENT_NORM_EPSILON = 1e-6
"""Of the query's and the latent's norms: a constant of the reference, whatever ``rms_norm_eps`` says."""


class LatentAttention(nn.Module):
    """Residual, norm and attention: the ``attention`` segment for ``heads`` local heads.

    *Absorbed* multiplies queries into the latent space and attends there; *naive* expands keys and values of every
    head from the latents first. Both read the same weights and the same cache and give the same result.
    """

    def __init__(self, config: ModelConfig, heads: int, form: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.heads, self.absorbed = config, heads, form == "absorbed"
        self.norm = Norm(config.hidden, config.norm_epsilon, dtype)
        if config.q_lora is None:
            self.q = Linear(config.hidden, heads * config.query, dtype)
        else:
            self.q_a = Linear(config.hidden, config.q_lora, dtype)
            self.q_norm = Norm(config.q_lora, LATENT_NORM_EPSILON, dtype)
            self.q_b = Linear(config.q_lora, heads * config.query, dtype)
        self.kv_a = Linear(config.hidden, config.latent, dtype)
        self.kv_norm = Norm(config.kv_lora, LATENT_NORM_EPSILON, dtype)
        self.k_up = Heads(heads, config.nope, config.kv_lora, dtype)
        self.v_up = Heads(heads, config.kv_lora, config.value, dtype)
        self.o = Linear(heads * config.value, config.hidden, dtype)
        self.rope = RotaryTable(config)

    def forward(self, hidden: Tensor, update: Tensor, start: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from the new tokens to all up to themselves.

        :param hidden, update: *Shape:* ``(batch, tokens, hidden)``; their sum is the residual stream.
        :param start: position of each row's first new token. *Shape:* ``(batch)``
        :param cache: latents so far. *Shape:* ``(batch, context, kv_lora + rope)``
        :returns: the residual stream, this rank's part of the update, the cache with the new tokens' latents.
        """
        hidden = hidden + update
        x = self.norm(hidden)
        positions = start.unsqueeze(1) + torch.arange(x.shape[1])
        query, query_rope = self.queries(x, positions)
        cache = self.remember(x, positions, cache)
        attend = self.attend_absorbed if self.absorbed else self.attend_naive
        mixed = attend(query, query_rope, cache, self.visible(positions, cache))
        return hidden, self.o(mixed.transpose(1, 2).flatten(2)), cache

    def queries(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, scaled for the softmax: parts without and with position, ``(batch, heads, tokens, nope)`` and ``(…, rope)``."""
        flat = self.q(x) if self.config.q_lora is None else self.q_b(self.q_norm(self.q_a(x)))
        by_head = (flat * softmax_scale(self.config)).unflatten(-1, (self.heads, self.config.query)).transpose(1, 2)
        plain, turned = by_head.split([self.config.nope, self.config.rope], dim=-1)
        return plain, self.rope(turned, positions)

    def remember(self, x: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        """The cache with the new tokens' latents at their positions; padding beyond a row's end is written too."""
        latent, key_rope = self.kv_a(x).split([self.config.kv_lora, self.config.rope], dim=-1)
        new = torch.cat([self.kv_norm(latent), self.rope(key_rope, positions)], dim=-1)
        row = torch.arange(cache.shape[0]).unsqueeze(1).expand_as(positions)
        return cache.index_put((row, positions), new)

    def visible(self, positions: Tensor, cache: Tensor) -> Tensor:
        """Which cache positions each new token reads. *Shape:* ``(batch, 1, tokens, context)``"""
        return (torch.arange(cache.shape[1]) <= positions.unsqueeze(-1)).unsqueeze(1)

    def attend_absorbed(self, plain: Tensor, turned: Tensor, cache: Tensor, visible: Tensor) -> Tensor:
        """:returns: *Shape:* ``(batch, heads, tokens, value)``"""
        query, cache = torch.cat([self.k_up(plain), turned], dim=-1), cache.unsqueeze(1)
        weights = soften(query @ cache.transpose(-1, -2), visible)
        # The rotated part of the cache is multiplied too and cut off after: cheaper than copying the latents out.
        return self.v_up((weights @ cache).narrow(-1, 0, self.config.kv_lora))

    def attend_naive(self, plain: Tensor, turned: Tensor, cache: Tensor, visible: Tensor) -> Tensor:
        latent, key_rope = cache.unsqueeze(1).split([self.config.kv_lora, self.config.rope], dim=-1)
        keys = latent @ self.k_up.weight.transpose(-1, -2)
        scores = plain @ keys.transpose(-1, -2) + turned @ key_rope.transpose(-1, -2)
        return soften(scores, visible) @ self.v_up(latent)


class Heads(nn.Module):
    """One matrix a head: ``x[:, h] @ weight[h]``, with the weight ``(heads, inputs, outputs)``."""

    def __init__(self, heads: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class RotaryTable(nn.Module):
    """Rotation of pairs ``(2i, 2i + 1)`` by position, in float32 (arXiv 2104.09864); cosines and sines are float32 ``(positions, rope / 2)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cos = nn.Parameter(torch.empty(config.positions, config.rope // 2), requires_grad=False)
        self.sin = nn.Parameter(torch.empty(config.positions, config.rope // 2), requires_grad=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """:param x: *Shape:* ``(batch, heads, tokens, rope)``, or ``(batch, tokens, rope)`` of one head. :param positions: *Shape:* ``(batch, tokens)``."""
        alone = {"num_heads": 1} if x.dim() == 3 else {}
        return torch.onnx.ops.rotary_embedding(x.float(), self.cos, self.sin, positions, interleaved=True, **alone).to(x.dtype)


def soften(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the visible positions, in float32."""
    masked = torch.where(visible, scores.float(), float("-inf"))
    return masked.softmax(-1).to(scores.dtype)
