"""Mixture of experts: routing and the experts are custom ops, each its own specification (:mod:`exporter.ops`)."""

import torch
from torch import Tensor, nn

from ..ops import torch_ops
from ..plan.config import ModelConfig
from .blocks import FeedForward, Linear, Norm


class MoeFeedForward(nn.Module):
    """Residual, norm, the routed experts of this rank and its part of the shared ones: the ``moe_ffn`` segment.

    :param experts: routed experts that this rank holds; ``first_expert`` is 0 in the template and set by assembly.
    :param shared_width: this rank's part of the shared experts' width; 0 where there are none.
    """

    def __init__(self, config: ModelConfig, experts: int, shared_width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.routing = config.routing
        self.norm = Norm(config.hidden, config.norm_epsilon, dtype)
        self.router = Linear(config.hidden, config.experts, torch.float32)
        self.router_bias = Bias(config.experts) if config.routing.bias else None
        self.experts = Experts(config, experts, dtype)
        self.shared = FeedForward(config.hidden, shared_width, dtype) if shared_width else None

    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """:returns: the residual stream that was read, and this rank's part of the next update."""
        hidden = hidden + update
        x = self.norm(hidden)
        tokens = x.flatten(0, 1)
        logits = self.router(tokens.float())
        chosen, weights = torch_ops.route(logits, self.router_bias.weight if self.router_bias else None, self.routing)
        routed = self.experts(tokens, chosen, weights).view_as(x)
        return hidden, routed if self.shared is None else routed + self.shared(x)


class Bias(nn.Module):
    """The correction bias of the choice, float32 ``(experts)``."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts), requires_grad=False)


class Experts(nn.Module):
    """Weights of the local experts: ``gate_up (experts, 2 * width, hidden)`` interleaved, ``down (experts, hidden, width)``."""

    def __init__(self, config: ModelConfig, experts: int, dtype: torch.dtype) -> None:
        super().__init__()
        width = config.expert_width
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, config.hidden, dtype=dtype), requires_grad=False)
        self.down = nn.Parameter(torch.empty(experts, config.hidden, width, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return torch_ops.experts(x, chosen, weights, self.gate_up, self.down, 0)
