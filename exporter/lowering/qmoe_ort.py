"""``QuantizedExperts`` of float activations → ONNX Runtime's ``com.microsoft.QMoE``: it computes the chosen experts only.

The kernel takes finished weights beside ``router_probs``, by which it chooses; the weight of each local expert serves as both.
It wants matrices by rows of outputs, unsigned, with zero points in the middle; so they are made anew at build time. With one
scale for each output, and with 4 bits, it computes in float32 what the function body computes. Where the builder may
substitute, it rounds activations in blocks to int8, whatever the scheme rounds them to: some five times as fast.
"""

from typing import TYPE_CHECKING

from ..ops import attributes_of
from .linear_ort import INT8
from .nodes import NodeWriter, combined_weights, placeholder, swiglu_attributes, whole_choice
from .packing import BLOCKS, block_of, derived_rows, derived_scales
from .rewrite import Context, Derived, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.QMoE"
EXACT_BLOCKS = {8: (0,), 4: (32, 64, 128)}
"""Bits → inputs that share a scale, 0 for all, where the kernel computes in float32: of 8 bits in blocks it rounds activations."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    attributes, chosen = attributes_of(node), context.value(node.input[1])
    block, bits = attributes.get("block_size", 0), _bits(node, context)
    if attributes["activations"] != "float" and not context.fast:
        return Refusal(f"the kernel takes float activations; these are rounded by {attributes['activations']} scales")
    if block not in EXACT_BLOCKS[bits] and not (context.fast and block in BLOCKS):
        return Refusal(f"the kernel does not compute {bits}-bit weights with a scale for {block or 'all'} inputs as they are written")
    if chosen.shape is None or not isinstance(chosen.shape[1], int):
        return Refusal("the number of experts per token is not known")
    if not context.derives:
        return Refusal("the kernel wants weights in another order, and nobody writes them here")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    import onnx

    writer, bits = NodeWriter(scope_of(node)), _bits(node, context)
    x, chosen, _, gate_up, gate_up_scale, down, down_scale = node.input[:7]
    count, top_k = context.value(gate_up).shape[0], context.value(chosen).shape[1]
    block = _block(node, context)
    whole = whole_choice(node, context, count)
    # A choice of the kernel's own making has shares for weights: their scale goes into the second matrix.
    derived = (*_derived(gate_up, gate_up_scale, bits, block, context), *_derived(down, down_scale, bits, block, context, whole.scale if whole else 1.0))
    choice = whole.logarithms if whole else combined_weights(writer, node, context, count)
    kind = context.value(gate_up_scale).dtype
    wide = x if kind == onnx.TensorProto.FLOAT else writer.add("Cast", [x], to=onnx.TensorProto.FLOAT)
    names = [made.name for made in derived]
    operands = [wide, choice, names[0], names[1], "", names[2], names[3], *([] if whole else [*[""] * 7, choice])]
    narrow = kind != onnx.TensorProto.FLOAT
    extra = swiglu_attributes(min(top_k, count)) | {"normalize_routing_weights": int(whole is not None)} | ({"block_size": block} if block else {}) | ({"accuracy_level": INT8} if context.fast and bits == 4 else {})
    y = writer.add("QMoE", operands, None if narrow else node.output[0], expert_weight_bits=bits, **extra)
    if narrow:
        writer.add("Cast", [y], node.output[0], to=kind)
    return Replacement(tuple(writer.nodes), (*writer.initializers, *map(placeholder, derived)), {"com.microsoft": 1}, derived)


def _bits(node: "onnx.NodeProto", context: Context) -> int:
    from onnx import TensorProto

    return 4 if context.value(node.input[3]).dtype == TensorProto.INT4 else 8


def _block(node: "onnx.NodeProto", context: Context) -> int:
    """Inputs that share a scale as the kernel gets them, 0 for all: its fast form of 8 bits goes by blocks."""
    given = attributes_of(node).get("block_size", 0)
    return given or (context.fast and block_of(*(context.value(node.input[place]).shape[1] for place in (3, 5)))) or 0


def _derived(weight: str, scale: str, bits: int, block: int, context: Context, factor: float = 1.0) -> tuple[Derived, Derived]:
    """``[E, in, out]`` of signed values as unsigned ``[E, out, in]``; scales ``[E, 1 or blocks, out]`` as ``[E, out]`` or ``[E, out, blocks]``."""
    shape, scales = context.value(weight).shape, context.value(scale).shape
    repeats = shape[1] // block // scales[1] if block else 0
    return derived_rows(weight, shape, bits, (shape[1] * bits // 8,)), derived_scales(scale, scales, repeats, factor)


QMOE_ORT = Lowerer("qmoe_ort", refuses, rewrite)
