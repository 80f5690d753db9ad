"""``Experts``: the routed experts that this rank holds, as one op."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .op import Op, Shape


def reference(
    x: np.ndarray,
    experts: np.ndarray,
    weights: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    *,
    first_expert: int,
) -> np.ndarray:
    """This rank's part of the mixture: its experts' SwiGLU outputs, weighted and summed, in float32 and rounded once.

    :param x: *Shape:* float ``(tokens, hidden)``
    :param experts: ids among all ranks' experts; those of other ranks add nothing. *Shape:* int64 ``(tokens, top_k)``
    :param weights: *Shape:* float32 ``(tokens, top_k)``
    :param gate_up: rows interleaved g0, u0, g1, u1, …: what ``com.microsoft.MoE`` reads. *Shape:* ``(experts, 2 * width, hidden)``
    :param down: *Shape:* ``(experts, hidden, width)``
    :param first_expert: id of the first local expert.
    :returns: *Shape:* as ``x``, and its dtype.
    """
    wide = x.astype(np.float32)
    y = np.zeros(wide.shape, np.float32)
    for local in range(gate_up.shape[0]):
        weight = np.where(experts == first_expert + local, weights, 0).sum(axis=1, keepdims=True, dtype=np.float32)
        both = wide @ gate_up[local].astype(np.float32).T
        gate, up = both[:, 0::2], both[:, 1::2]
        y += weight * ((gate / (1 + np.exp(-gate)) * up) @ down[local].astype(np.float32).T)
    return y.astype(x.dtype)


def combining(counted: str, axis: str) -> str:
    """Constants, and ``combine``: each token's weight for each local expert.

    OneHot wraps negative ids; by equality, other ranks' experts give zero.

    :param counted: an input whose first dimension is the local experts.
    :param axis: where ``combine``, by expert and token, gets its third dimension.
    """
    return f"""
        first = Constant <value_int: int = @first_expert> ()
        one = Constant <value_int: int = 1> ()
        zero = Constant <value_float: float = 0.0> ()
        axis_0 = Constant <value_ints: ints = [0]> ()
        axis_1 = Constant <value_ints: ints = [1]> ()
        axis_2 = Constant <value_ints: ints = [2]> ()
        axes_12 = Constant <value_ints: ints = [1, 2]> ()
        two = Constant <value_ints: ints = [2]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()

        count_1d = Shape <start = 0, end = 1> ({counted})
        count = Squeeze (count_1d)
        stop = Add (first, count)
        ids_1d = Range (first, stop, one)
        ids = Unsqueeze (ids_1d, axes_12)
        hit = Equal (ids, experts)
        hit_weights = Where (hit, weights, zero)
        combine_f32 = ReduceSum <keepdims = 0> (hit_weights, axis_2)
        combine_2d = CastLike (combine_f32, x)
        combine = Unsqueeze (combine_2d, {axis})
"""


def swiglu(axis: str) -> str:
    """``h`` of ``both``, whose gate and up lie interleaved along ``axis``."""
    return f"""
        gate = Slice (both, axis_0, end, {axis}, two)
        up = Slice (both, axis_1, end, {axis}, two)
        gate_sigmoid = Sigmoid (gate)
        gate_silu = Mul (gate, gate_sigmoid)
        h = Mul (gate_silu, up)"""


def text(attributes: Mapping[str, Any], inputs: int) -> str:
    """Every expert for every token, then the weighted sum.

    The weights stand on the left of the products, as they lie in the file: transposing them would copy them.
    """
    return f"""{combining("gate_up", "axis_1")}
        x_columns = Transpose <perm = [1, 0]> (x)
        both = MatMul (gate_up, x_columns){swiglu("axis_1")}
        out = MatMul (down, h)
        weighted = Mul (out, combine)
        y_columns = ReduceSum <keepdims = 0> (weighted, axis_0)
        y = Transpose <perm = [1, 0]> (y_columns)"""


def shapes(x: Shape, experts: Shape, weights: Shape, gate_up: Shape, down: Shape, **_: Any) -> tuple[Shape, ...]:
    """The shape of ``x``."""
    return (x,)


EXPERTS = Op(
    name="Experts",
    inputs=("x", "experts", "weights", "gate_up", "down"),
    outputs=("y",),
    attributes=("first_expert",),
    reference=reference,
    text=text,
    shapes=shapes,
)
