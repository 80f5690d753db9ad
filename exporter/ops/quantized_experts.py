"""``QuantizedExperts``: ``Experts`` with int8 or int4 weights, and products in int8 where activations are quantised too.

The body has the one form that ONNX Runtime and TensorRT-RTX both turn into int8 products: a Q and a DQ of its own before
each product, signed zero points as tensors, and a scalar nominal scale of 1/128. What differs by expert, channel or token is
divided out before and multiplied in after. (Scales by axis or by block are not fused, or fused wrongly.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ExportError
from .experts import combining, swiglu
from .op import Op, Shape

FLOOR = 2.0**-14
"""The least range of a token: the least normal float16. Tokens of zeros must not divide by zero."""


def reference(
    x: np.ndarray,
    experts: np.ndarray,
    weights: np.ndarray,
    gate_up: np.ndarray,
    gate_up_scale: np.ndarray,
    down: np.ndarray,
    down_scale: np.ndarray,
    x_scale: np.ndarray | None = None,
    h_scale: np.ndarray | None = None,
    *,
    first_expert: int,
    activations: str,
    block_size: int = 0,
) -> np.ndarray:
    """This rank's part of the mixture: as ``Experts`` of the dequantised weights, activations rounded to int8 before each product.

    Symmetric int8: zero point 0, half to even, saturated to -128 and 127. In float32, rounded once.

    :param x: *Shape:* float ``(tokens, hidden)``
    :param experts: ids among all ranks' experts; those of other ranks add nothing. *Shape:* int64 ``(tokens, top_k)``
    :param weights: *Shape:* float32 ``(tokens, top_k)``
    :param gate_up: columns interleaved g0, u0, g1, u1, …. *Shape:* int8 or int4 ``(experts, hidden, 2 * width)``
    :param gate_up_scale: as all scales, in the dtype of ``x``. *Shape:* ``(experts, 1, 2 * width)``, with blocks ``(experts, hidden / block_size, 2 * width)``
    :param down: *Shape:* int8 or int4 ``(experts, width, hidden)``
    :param down_scale: *Shape:* ``(experts, 1, hidden)``, with blocks ``(experts, width / block_size, hidden)``
    :param x_scale: given where activations are static. *Shape:* ``()``
    :param h_scale: likewise, of what goes into ``down``. *Shape:* ``(experts, 1, 1)``
    :param first_expert: id of the first local expert.
    :param activations: ``static``: by these scales; ``token``: by each token's own range; ``float``: not quantised.
    :param block_size: inputs of a weight that share a scale; 0 for all. Blocks go with float activations alone.
    :returns: *Shape:* as ``x``, and its dtype.
    """
    wide = x.astype(np.float32)
    y = np.zeros(wide.shape, np.float32)
    for local in range(gate_up.shape[0]):
        weight = np.where(experts == first_expert + local, weights, 0).sum(axis=1, keepdims=True, dtype=np.float32)
        both = _rounded(wide, activations, x_scale) @ _dequantized(gate_up[local], gate_up_scale[local])
        gate, up = both[:, 0::2], both[:, 1::2]
        h = gate / (1 + np.exp(-gate)) * up
        y += weight * (_rounded(h, activations, None if h_scale is None else h_scale[local]) @ _dequantized(down[local], down_scale[local]))
    return y.astype(x.dtype)


def _dequantized(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """By column, or by block of rows."""
    return values.astype(np.float32) * scale.astype(np.float32).repeat(values.shape[0] // scale.shape[0], axis=0)


def _rounded(x: np.ndarray, activations: str, scale: np.ndarray | None) -> np.ndarray:
    """``x`` through int8 and back."""
    if activations == "float":
        return x
    if activations == "token":
        scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), FLOOR) / 127
    return np.clip(np.rint(x / np.float32(scale)), -128, 127) * np.float32(scale)


HEAD = f"""{combining("gate_up_scale", "axis_2")}
        x_3d = Unsqueeze (x, axis_0)"""
NOMINAL = """
        zero_point = Constant <value: tensor = int8 zero_point {0}> ()
        nominal_f32 = Constant <value_float: float = 0.0078125> ()
        nominal = CastLike (nominal_f32, down_scale)
        steps_f32 = Constant <value_float: float = 128.0> ()
        steps = CastLike (steps_f32, down_scale)
        gate_up_range = Mul (gate_up_scale, steps)
        down_range = Mul (down_scale, steps)
        gate_up_nominal = DequantizeLinear (gate_up, nominal, zero_point)
        down_nominal = DequantizeLinear (down, nominal, zero_point)"""
SWIGLU = swiglu("axis_2")
TAIL = """
        weighted = Mul (out, combine)
        y = ReduceSum <keepdims = 0> (weighted, axis_0)"""
BLOCKS = f"""
        gate_up_wide = DequantizeLinear <axis: int = 1, block_size: int = @block_size> (gate_up, gate_up_scale)
        both = MatMul (x_3d, gate_up_wide){SWIGLU}
        down_wide = DequantizeLinear <axis: int = 1, block_size: int = @block_size> (down, down_scale)
        out = MatMul (h, down_wide)"""
FLOAT = f"""
        both_nominal = MatMul (x_3d, gate_up_nominal)
        both = Mul (both_nominal, gate_up_range){SWIGLU}
        out_nominal = MatMul (h, down_nominal)
        out = Mul (out_nominal, down_range)"""


def _through_int8(name: str, source: str, scale: str) -> str:
    return f"""
        {name}_int8 = QuantizeLinear ({source}, {scale}, zero_point)
        {name}_rounded = DequantizeLinear ({name}_int8, {scale}, zero_point)"""


def ranges_by_token(name: str, source: str) -> str:
    """``{name}_range``, 128 steps of each token's own size, and ``{name}_nominal``, the values with it divided out."""
    return f"""
        {name}_size = Abs ({source})
        {name}_largest = ReduceMax <keepdims = 1> ({name}_size, last)
        {name}_floored = Max ({name}_largest, floor)
        {name}_step = Div ({name}_floored, most)
        {name}_range = Mul ({name}_step, steps)
        {name}_nominal = Div ({source}, {name}_range)"""


STATIC = f"""{_through_int8("x", "x_3d", "x_scale")}
        both_nominal = MatMul (x_rounded, gate_up_nominal)
        both = Mul (both_nominal, gate_up_range){SWIGLU}
        h_range = Mul (h_scale, steps)
        h_nominal = Div (h, h_range){_through_int8("h", "h_nominal", "nominal")}
        out_nominal = MatMul (h_rounded, down_nominal)
        out_range = Mul (down_range, h_range)
        out = Mul (out_nominal, out_range)"""
TOKEN = f"""
        most_f32 = Constant <value_float: float = 127.0> ()
        most = CastLike (most_f32, down_scale)
        floor_f32 = Constant <value_float: float = {FLOOR:.17f}> ()
        floor = CastLike (floor_f32, down_scale)
        last = Constant <value_ints: ints = [-1]> ()
{ranges_by_token("x", "x_3d")}{_through_int8("x", "x_nominal", "nominal")}
        both_nominal = MatMul (x_rounded, gate_up_nominal)
        both_by_token = Mul (both_nominal, gate_up_range)
        both = Mul (both_by_token, x_range){SWIGLU}
{ranges_by_token("h", "h")}{_through_int8("h", "h_nominal", "nominal")}
        out_nominal = MatMul (h_rounded, down_nominal)
        out_by_token = Mul (out_nominal, down_range)
        out = Mul (out_by_token, h_range)"""
PRODUCTS = {"static": STATIC, "token": TOKEN, "float": FLOAT}
"""What becomes of activations → the two products."""


def text(attributes: Mapping[str, Any], inputs: int) -> str:
    """Every expert for every token, then the weighted sum.

    Experts are counted by a scale's shape: ONNX Runtime has no Shape of int4. Constants take the type of a weight's scale,
    which is known before shapes are inferred.
    """
    activations = attributes["activations"]
    if activations not in PRODUCTS:
        raise ExportError(f"activations are {activations!r}, which is no way to quantise them; known: {', '.join(PRODUCTS)}.")
    if not attributes.get("block_size"):
        return f"{HEAD}{NOMINAL}{PRODUCTS[activations]}{TAIL}"
    if activations != "float":
        # TensorRT-RTX takes such a product and multiplies all of it by the first block's scales.
        raise ExportError(f"weights with a scale for {attributes['block_size']} inputs go with float activations, not {activations!r}.")
    return f"{HEAD}{BLOCKS}{TAIL}"


def shapes(x: Shape, *_: Shape, **__: Any) -> tuple[Shape, ...]:
    """The shape of ``x``."""
    return (x,)


QUANTIZED_EXPERTS = Op(
    name="QuantizedExperts",
    inputs=("x", "experts", "weights", "gate_up", "gate_up_scale", "down", "down_scale", "x_scale", "h_scale"),
    outputs=("y",),
    attributes=("first_expert", "activations", "block_size"),
    reference=reference,
    text=text,
    shapes=shapes,
)
