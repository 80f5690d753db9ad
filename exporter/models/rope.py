"""Rotary positions with YaRN (arXiv 2309.00071), as plain numbers: computed at export, stored beside the weights."""

import math
from typing import TYPE_CHECKING

from ..plan.config import ModelConfig, Yarn

if TYPE_CHECKING:
    import numpy as np
    import torch


def softmax_scale(config: ModelConfig) -> float:
    """Factor on attention scores: ``query**-0.5``, times YaRN's temperature squared where it is in force."""
    scale = config.query**-0.5
    if config.yarn and config.yarn.mscale_all_dim:
        scale *= _temperature(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    return scale


def tables(config: ModelConfig) -> tuple["np.ndarray", "np.ndarray"]:
    """Cosines and sines by position. *Shape:* float32 ``(positions, rope / 2)`` each.

    Computed by torch in float32, step by step as transformers does: an angle is position times frequency, so the last
    bit of a frequency is worth hundredths of a radian at position 100,000.
    """
    import torch

    angle = torch.arange(config.positions).float()[:, None] * _frequencies(config)
    factor = _table_factor(config.yarn)
    return (angle.cos() * factor).numpy(), (angle.sin() * factor).numpy()


def _frequencies(config: ModelConfig) -> "torch.Tensor":
    """Radians per position of each pair. *Shape:* float32 ``(rope / 2)``."""
    import torch

    period = config.rope_theta ** (torch.arange(0, config.rope, 2).float() / config.rope)
    if config.yarn is None:
        return 1.0 / period
    kept = 1 - _ramp(config)
    return 1.0 / (config.yarn.factor * period) * (1 - kept) + 1.0 / period * kept


def _ramp(config: ModelConfig) -> "torch.Tensor":
    """0 for pairs that keep their frequency, 1 for those that are interpolated. *Shape:* float32 ``(rope / 2)``."""
    import torch

    low = max(math.floor(_pair_of(config, config.yarn.beta_fast)), 0)
    high = min(math.ceil(_pair_of(config, config.yarn.beta_slow)), config.rope - 1)
    pair = torch.arange(config.rope // 2).float()
    return ((pair - low) / (high - low if high != low else 0.001)).clamp(0, 1)


def _pair_of(config: ModelConfig, rotations: float) -> float:
    """The (fractional) pair that turns ``rotations`` times over the original context."""
    length = config.yarn.original_positions
    return config.rope * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))


def _table_factor(yarn: Yarn | None) -> float:
    """What transformers multiplies cosines and sines by: 1 for every released model."""
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return _temperature(yarn.factor, yarn.mscale) / _temperature(yarn.factor, yarn.mscale_all_dim)
    return _temperature(yarn.factor, 1.0)


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
