"""Cases for the custom ops. They know no backend: a backend runs them all, minus a list of *case → reason*."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

V3 = {"top_k": 8, "groups": 8, "top_groups": 4, "scoring": "sigmoid", "group_score": "top2", "normalize": 1, "scale": 2.5}
V2 = {"top_k": 6, "groups": 8, "top_groups": 3, "scoring": "softmax", "group_score": "max", "normalize": 0, "scale": 16.0}
LITE = {"top_k": 6, "groups": 1, "top_groups": 1, "scoring": "softmax", "group_score": "max", "normalize": 0, "scale": 1.0}
ROUTINGS = {"v3": (V3, 256, True), "v2": (V2, 160, False), "v2-lite": (LITE, 64, False)}
"""Family → attributes, experts, correction bias: as in the released configurations."""


@dataclass(frozen=True)
class OpCase:
    """One call of an op: all that a backend needs to run it and to know what should come out."""

    name: str
    op: str
    inputs: Callable[[], tuple[np.ndarray, ...]]
    attributes: dict[str, Any] = field(default_factory=dict)


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def route_case(family: str, tokens: int, **changes: Any) -> OpCase:
    attributes, experts, biased = ROUTINGS[family]

    def inputs() -> tuple[np.ndarray, ...]:
        logits = random(tokens, tokens, experts)
        return (logits, random(1, experts, scale=0.1)) if biased else (logits,)

    changed = "".join(f", {key} {value}" for key, value in changes.items())
    return OpCase(f"route {family}, {tokens} tokens{changed}", "Route", inputs, attributes | changes)


def tied_routes(family: str) -> OpCase:
    """All logits equal: at a tie the lower id goes first."""
    attributes, experts, biased = ROUTINGS[family]

    def inputs() -> tuple[np.ndarray, ...]:
        logits = np.zeros((3, experts), np.float32)
        return (logits, np.zeros(experts, np.float32)) if biased else (logits,)

    return OpCase(f"route {family}, all scores equal", "Route", inputs, attributes)


@dataclass(frozen=True)
class Mixture:
    """Sizes and seed of an ``Experts`` call over ``experts`` in all, ``top_k`` different ones a token."""

    tokens: int
    experts: int = 8
    top_k: int = 3
    hidden: int = 32
    width: int = 48
    dtype: str = "float32"

    def inputs(self) -> tuple[np.ndarray, ...]:
        """x, experts, weights, gate_up, down: see :mod:`exporter.ops.experts`."""
        generator = np.random.default_rng(self.tokens)
        chosen = [generator.permutation(self.experts)[: self.top_k] for _ in range(self.tokens)]
        weights = generator.random((self.tokens, self.top_k), np.float32)
        dtype = DTYPES[self.dtype]
        return (
            random(2, self.tokens, self.hidden).astype(dtype),
            np.array(chosen, np.int64).reshape(self.tokens, self.top_k),
            weights,
            random(3, self.experts, 2 * self.width, self.hidden, scale=self.hidden**-0.5).astype(dtype),
            random(4, self.experts, self.hidden, self.width, scale=self.width**-0.5).astype(dtype),
        )


def sliced(mixture: Mixture, first: int, count: int, all_on: int | None = None) -> OpCase:
    """``count`` of the mixture's experts from ``first`` on, as one rank has them.

    :param all_on: every token's every choice is this expert.
    """

    def inputs() -> tuple[np.ndarray, ...]:
        x, chosen, weights, gate_up, down = mixture.inputs()
        chosen = chosen if all_on is None else np.full_like(chosen, all_on)
        return x, chosen, weights, gate_up[first : first + count], down[first : first + count]

    where = f"{first}-{first + count - 1} of {mixture.experts}"
    crowd = "" if all_on is None else f", all on {all_on}"
    return OpCase(f"experts {where}, {mixture.tokens} tokens, {mixture.dtype}{crowd}", "Experts", inputs, {"first_expert": first})


def quantized(mixture: Mixture, first: int, count: int, activations: str, all_on: int | None = None) -> OpCase:
    """``sliced`` with int8 weights. Static scales are narrower than the data: saturation is part of the meaning."""
    like = sliced(mixture, first, count, all_on)

    def inputs() -> tuple[np.ndarray, ...]:
        x, chosen, weights, *floats = like.inputs()
        (gate_up, gate_up_scale), (down, down_scale) = (_to_int8(weight.swapaxes(1, 2), x.dtype) for weight in floats)
        operands = (x, chosen, weights, gate_up, gate_up_scale, down, down_scale)
        static = (np.array(3 / 127, x.dtype), np.linspace(1 / 127, 4 / 127, count).reshape(count, 1, 1).astype(x.dtype))
        return operands + static if activations == "static" else operands

    attributes = {"first_expert": first, "activations": activations}
    return OpCase(f"quantized {like.name}, {activations}", "QuantizedExperts", inputs, attributes)


def blocked(mixture: Mixture, first: int, count: int, block: int, bits: int = 4) -> OpCase:
    """``sliced`` with int4 or int8 weights, a scale for each ``block`` inputs."""
    like = sliced(mixture, first, count)

    def inputs() -> tuple[np.ndarray, ...]:
        x, chosen, weights, *floats = like.inputs()
        return x, chosen, weights, *(part for weight in floats for part in to_blocks(weight.swapaxes(1, 2), x.dtype, block, bits))

    attributes = {"first_expert": first, "activations": "float", "block_size": block}
    return OpCase(f"quantized {like.name}, int{bits} by {block}", "QuantizedExperts", inputs, attributes)


def to_blocks(weight: np.ndarray, dtype: np.dtype, block: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Values, and a scale for each block of inputs. :param weight: *Shape:* ``(…, inputs, outputs)``."""
    wide, most = weight.astype(np.float32), 2 ** (bits - 1) - 1
    blocks = wide.reshape(*wide.shape[:-2], -1, block, wide.shape[-1])
    scale = (np.abs(blocks).max(axis=-2) / most).astype(dtype)
    values = np.clip(np.rint(wide / scale.astype(np.float32).repeat(block, axis=-2)), -most - 1, most).astype(np.int8)
    return values.astype(ml_dtypes.int4) if bits == 4 else values, scale


def _to_int8(weight: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Values, and a scale by expert and output channel."""
    wide = weight.astype(np.float32)
    scale = (np.abs(wide).max(axis=1, keepdims=True) / 127).astype(dtype)
    return np.clip(np.rint(wide / scale.astype(np.float32)), -128, 127).astype(np.int8), scale


ROUTE_CASES = (
    *(route_case(family, tokens) for family in ROUTINGS for tokens in (0, 1, 7, 64)),
    *(tied_routes(family) for family in ROUTINGS),
    route_case("v3", 7, normalize=0),
    route_case("v3", 7, top_groups=8),
    route_case("v3", 7, groups=4, top_groups=1),
    route_case("v3", 7, group_score="max"),
    route_case("v3", 7, top_k=1),
    route_case("v2", 7, normalize=1, scale=1.0),
)
EXPERT_CASES = (
    *(sliced(Mixture(tokens), 0, 8) for tokens in (0, 1, 2, 17)),
    sliced(Mixture(1, top_k=1), 0, 8),
    sliced(Mixture(17), 4, 4),
    sliced(Mixture(17), 7, 1),
    sliced(Mixture(5), 0, 8, all_on=3),
    sliced(Mixture(5), 4, 4, all_on=3),
    sliced(Mixture(5), 4, 4, all_on=6),
    sliced(Mixture(17, dtype="float16"), 0, 8),
    sliced(Mixture(17, dtype="float16"), 2, 4),
    sliced(Mixture(17, dtype="bfloat16"), 2, 4),
)
QUANTIZED_CASES = tuple(
    case
    for activations in ("static", "token", "float")
    for case in (
        *(quantized(Mixture(tokens), 0, 8, activations) for tokens in (0, 1, 17)),
        quantized(Mixture(17), 4, 4, activations),
        quantized(Mixture(5), 4, 4, activations, all_on=3),
        quantized(Mixture(17, dtype="float16"), 0, 8, activations),
        quantized(Mixture(17, dtype="bfloat16"), 2, 4, activations),
    )
) + tuple(
    blocked(Mixture(tokens, hidden=64, width=32, dtype=dtype), first, 4, block)
    for tokens, dtype, first, block in ((0, "float32", 0, 16), (1, "float32", 4, 16), (17, "float32", 4, 32), (17, "float16", 2, 16), (17, "bfloat16", 2, 32))
)
COLLECTIVE_CASES = (
    OpCase("all_reduce", "AllReduce", lambda: (random(5, 2, 3, 4),), {"ranks": 1}),
    OpCase("all_gather", "AllGather", lambda: (random(5, 2, 3, 4),), {"ranks": 1, "axis": -1}),
)
CASES = (*ROUTE_CASES, *EXPERT_CASES, *QUANTIZED_CASES, *COLLECTIVE_CASES)
