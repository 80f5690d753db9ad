"""Muon for matrices and AdamW for the rest: what trains the tiny-v3 sample well in an hour on two cores."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration from Keller Jordan's Muon."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each matrix with its singular values moved near one.

    :param matrices: *Shape:* ``(count, rows, columns)``
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose matrices are orthogonalised; stacked experts count as one matrix each."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update; parameters of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self.direction(parameter, group["momentum"])
                    by_shape[direction.shape[-2:]].append((parameter, direction))
            for members in by_shape.values():
                self.apply(members, group["lr"], group["weight_decay"])

    def direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The Nesterov direction as a stack of matrices, the halves of ``gate_up_proj`` apart."""
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        direction = parameter.grad.lerp(buffer, momentum)
        if getattr(parameter, "is_gate_up", False):
            return direction.view(-1, direction.shape[-2] // 2, direction.shape[-1])
        return direction.view(-1, *direction.shape[-2:])

    def apply(self, members: list[tuple[nn.Parameter, Tensor]], lr: float, weight_decay: float) -> None:
        """Subtract the orthogonalised directions of one shape."""
        stacked = orthogonalise(torch.cat([direction for _, direction in members]))
        rows, columns = stacked.shape[-2:]
        scale = max(1.0, rows / columns) ** 0.5
        for (parameter, _), update in zip(members, stacked.split([len(d) for _, d in members]), strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.reshape(parameter.shape), alpha=-lr * scale)


def make_optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the layers, AdamW for embedding, head, norms and routers."""
    muon, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        parameter.is_gate_up = name.endswith("gate_up_proj")
        if "embed_tokens" in name or "lm_head" in name:
            decayed.append(parameter)
        elif parameter.ndim < 2 or name.endswith("mlp.gate.weight"):
            plain.append(parameter)
        else:
            muon.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return (
        Muon(muon, lr=muon_lr, momentum=0.95, weight_decay=weight_decay),
        torch.optim.AdamW(groups, lr=adam_lr, betas=(0.9, 0.95)),
    )
