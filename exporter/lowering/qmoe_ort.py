"""``QuantizedExperts`` of float activations → ONNX Runtime's ``com.microsoft.QMoE``: it computes the chosen experts only.

The kernel takes finished weights beside ``router_probs``, by which it chooses; the weight of each local expert serves as both.
It wants matrices by rows of outputs, unsigned, with zero points in the middle; so they are made anew at build time. With one
scale for each output, and with 4 bits, it computes in float32 what the function body computes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ops import attributes_of
from .nodes import NodeWriter, combined_weights, swiglu_attributes
from .rewrite import Context, Derived, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.QMoE"
BLOCKS = {8: (0,), 4: (32, 64, 128)}
"""Bits → inputs that share a scale, 0 for all, where the kernel computes in float32: of 8 bits in blocks it rounds activations."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    attributes, chosen = attributes_of(node), context.value(node.input[1])
    if attributes["activations"] != "float":
        return Refusal(f"the kernel takes float activations; these are rounded by {attributes['activations']} scales")
    block, bits = attributes.get("block_size", 0), _bits(node, context)
    if block not in BLOCKS[bits]:
        return Refusal(f"the kernel does not compute {bits}-bit weights with a scale for {block or 'all'} inputs as they are written")
    if chosen.shape is None or not isinstance(chosen.shape[1], int):
        return Refusal("the number of experts per token is not known")
    if not context.derives:
        return Refusal("the kernel wants weights in another order, and nobody writes them here")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    import onnx

    writer, attributes, bits = NodeWriter(scope_of(node)), attributes_of(node), _bits(node, context)
    x, chosen, weights, gate_up, gate_up_scale, down, down_scale = node.input
    derived = tuple(made for pair in ((gate_up, gate_up_scale), (down, down_scale)) for made in _derived(*pair, bits, attributes, context))
    count, top_k = context.value(gate_up).shape[0], context.value(chosen).shape[1]
    combine = combined_weights(writer, chosen, weights, attributes["first_expert"], count)
    block = {"block_size": attributes["block_size"]} if attributes.get("block_size") else {}
    kind = context.value(gate_up_scale).dtype
    wide = x if kind == onnx.TensorProto.FLOAT else writer.add("Cast", [x], to=onnx.TensorProto.FLOAT)
    names = [made.name for made in derived]
    operands = [wide, combine, names[0], names[1], "", names[2], names[3], *[""] * 7, combine]
    narrow = kind != onnx.TensorProto.FLOAT
    y = writer.add("QMoE", operands, None if narrow else node.output[0], expert_weight_bits=bits, **swiglu_attributes(min(top_k, count)), **block)
    if narrow:
        writer.add("Cast", [y], node.output[0], to=kind)
    return Replacement(tuple(writer.nodes), (*writer.initializers, *map(_placeholder, derived)), {"com.microsoft": 1}, derived)


def _bits(node: "onnx.NodeProto", context: Context) -> int:
    from onnx import TensorProto

    return 4 if context.value(node.input[3]).dtype == TensorProto.INT4 else 8


def _derived(weight: str, scale: str, bits: int, attributes: dict[str, Any], context: Context) -> tuple[Derived, Derived]:
    """``[E, in, out]`` of signed values as unsigned ``[E, out, in]``; scales ``[E, 1, out]`` as ``[E, out]``, and by blocks
    ``[E, in / block, out]`` as ``[E, out, in / block]``."""
    experts, inputs, outputs = context.value(weight).shape
    turned = (experts, outputs, context.value(scale).shape[1]) if attributes.get("block_size") else (experts, outputs)
    rows = Derived(f"{weight}.rows", "U8", (experts, outputs, inputs * bits // 8), (weight,), _rows4 if bits == 4 else _rows8)
    return rows, Derived(f"{scale}.rows", "F32", turned, (scale,), _scales)


def _rows8(values: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(one.T).view(np.uint8) ^ np.uint8(128) for one in values)


def _rows4(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """:param pairs: two outputs in a byte. *Shape:* uint8 ``(experts, inputs, outputs / 2)``"""
    for one in pairs:
        values = np.stack([one & 15, one >> 4], axis=-1).reshape(len(one), -1).T ^ np.uint8(8)
        yield values[:, 0::2] | (values[:, 1::2] << 4)


def _scales(values: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(one.T, np.float32) for one in values)


def _placeholder(made: Derived) -> "onnx.TensorProto":
    """An initializer whose place the backend fills in."""
    import onnx

    kind = {"U8": onnx.TensorProto.UINT8, "F32": onnx.TensorProto.FLOAT}[made.dtype]
    return onnx.TensorProto(name=made.name, data_type=kind, dims=made.shape, data_location=onnx.TensorProto.EXTERNAL)


QMOE_ORT = Lowerer("qmoe_ort", refuses, rewrite)
