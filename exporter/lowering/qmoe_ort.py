"""``QuantizedExperts`` of float activations → ONNX Runtime's ``com.microsoft.QMoE``: it computes the chosen experts only.

The kernel takes finished weights beside ``router_probs``, by which it chooses; the weight of each local expert serves as both.
It wants matrices by rows of outputs, unsigned, with zero points in the middle; so they are made anew at build time. With one
scale for each output, and with 4 bits, it computes in float32 what the function body computes. Where the builder may
substitute, it rounds activations in blocks to int8, whatever the scheme rounds them to: some five times as fast.
"""

from typing import TYPE_CHECKING

from ..ops import attributes_of
from .linear_ort import INT8
from .nodes import (
    FLOAT32,
    PRECISIONS,
    NodeWriter,
    cast,
    combined_weights,
    logarithms_and_factor,
    placeholder,
    swiglu_attributes,
    whole_choice,
)
from .packing import BLOCKS, STORED, block_of, derived_rows, derived_scales
from .rewrite import Context, Derived, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.QMoE"
FINISHED = "com.microsoft.QMoE/router_weights"
"""Whether the kernel heeds that input: the one for CUDA does not."""
ROUNDS = "com.microsoft.QMoE/int8"
"""Whether the kernel rounds activations where 8-bit weights have a scale for each block: so the one for CPUs."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    attributes, chosen = attributes_of(node), context.value(node.input[1])
    block, bits = attributes.get("block_size", 0), _bits(node, context)
    if attributes["activations"] != "float" and not context.fast:
        return Refusal(f"the kernel takes float activations; these are rounded by {attributes['activations']} scales")
    rounds = bits == 8 and context.capabilities.has(ROUNDS) and not context.fast
    if block not in ((0,) if rounds else (*BLOCKS, 0) if bits == 8 else BLOCKS):
        return Refusal(f"the kernel does not compute {bits}-bit weights with a scale for {block or 'all'} inputs as they are written")
    if chosen.shape is None or not isinstance(chosen.shape[1], int):
        return Refusal("the number of experts per token is not known")
    kind = PRECISIONS[context.value(node.input[4]).dtype]
    if not context.capabilities.computes(KERNEL, kind) and not context.capabilities.computes(KERNEL, "fp32"):
        return Refusal(f"the kernel does not compute in {kind}")
    if not context.derives:
        return Refusal("the kernel wants weights in another order, and nobody writes them here")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    writer, bits, block = NodeWriter(scope_of(node)), _bits(node, context), _block(node, context)
    x, chosen, _, gate_up, gate_up_scale, down, down_scale = node.input[:7]
    count, top_k, given = context.value(gate_up).shape[0], context.value(chosen).shape[1], context.value(gate_up_scale).dtype
    inner = given if context.capabilities.computes(KERNEL, PRECISIONS[given]) else FLOAT32
    attributes = swiglu_attributes(min(top_k, count)) | {"expert_weight_bits": bits, "weights_prepacked": 0}
    attributes |= {"block_size": block} if block else {}
    attributes |= {"accuracy_level": INT8} if context.fast and bits == 4 else {}
    whole, finished, factor = whole_choice(node, context, count), (), None
    if whole:
        # Weights are the kernel's own shares of the choice: their scale goes into the second matrix.
        choice, attributes["normalize_routing_weights"] = whole.logarithms, 1
    elif context.capabilities.has(FINISHED):
        choice = combined_weights(writer, node, context, count)
        finished = (*[""] * 7, choice)
    else:
        choice, factor = logarithms_and_factor(writer, node, context, count)
    derived = (
        *_derived(gate_up, gate_up_scale, bits, block, inner, context),
        *_derived(down, down_scale, bits, block, inner, context, whole.scale if whole else 1.0),
    )
    names = [made.name for made in derived]
    operands = [cast(writer, x, given, inner), cast(writer, choice, FLOAT32, inner), names[0], names[1], "", names[2], names[3], *finished]
    plain = inner == given and not factor
    y = writer.add("QMoE", operands, node.output[0] if plain else None, **attributes)
    if factor:
        y = writer.add("Mul", [y, cast(writer, factor, FLOAT32, inner)], node.output[0] if inner == given else None)
    if inner != given:
        cast(writer, y, inner, given, node.output[0])
    return Replacement(tuple(writer.nodes), (*writer.initializers, *map(placeholder, derived)), {"com.microsoft": 1}, derived)


def _bits(node: "onnx.NodeProto", context: Context) -> int:
    from onnx import TensorProto

    return 4 if context.value(node.input[3]).dtype == TensorProto.INT4 else 8


def _block(node: "onnx.NodeProto", context: Context) -> int:
    """Inputs that share a scale as the kernel gets them, 0 for all: its fast form of 8 bits goes by blocks."""
    given = attributes_of(node).get("block_size", 0)
    return given or (context.fast and block_of(*(context.value(node.input[place]).shape[1] for place in (3, 5)))) or 0


def _derived(weight: str, scale: str, bits: int, block: int, kind: int, context: Context, factor: float = 1.0) -> tuple[Derived, Derived]:
    """``[E, in, out]`` of signed values as unsigned ``[E, out, in]``; scales ``[E, 1 or blocks, out]`` as ``[E, out]`` or ``[E, out, blocks]``."""
    shape, scales = context.value(weight).shape, context.value(scale).shape
    repeats = shape[1] // block // scales[1] if block else 0
    return derived_rows(weight, shape, bits, (shape[1] * bits // 8,)), derived_scales(scale, scales, repeats, factor, STORED[PRECISIONS[kind]])


QMOE_ORT = Lowerer("qmoe_ort", refuses, rewrite)
