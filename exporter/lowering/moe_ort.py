"""``Experts`` → ONNX Runtime's ``com.microsoft.MoE``: its kernel computes the chosen experts only.

The kernel takes a softmax of ``router_probs`` and has no input for finished weights, so the weights go in as their
logarithms, and what it makes of them (weights that sum to one) is multiplied by their sum. A token without a local
expert has the sum zero.
"""

from typing import TYPE_CHECKING

from .nodes import FLOAT32, PRECISIONS, NodeWriter, cast, logarithms_and_factor, swiglu_attributes
from .rewrite import Context, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.MoE"


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    from onnx import TensorProto

    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    weights, chosen = context.value(node.input[3]), context.value(node.input[1])
    if weights.shape is None or not isinstance(weights.shape[0], int):
        return Refusal("the number of local experts is not known")
    if _computed_in(weights.dtype, context) is None:
        return Refusal(f"the kernel computes float32 and float16, not {TensorProto.DataType.Name(weights.dtype or 0)}")
    if chosen.shape is None or not isinstance(chosen.shape[1], int):
        return Refusal("the number of experts per token is not known")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    writer = NodeWriter(scope_of(node))
    x, chosen, _, gate_up, down = node.input
    count, top_k, given = context.value(gate_up).shape[0], context.value(chosen).shape[1], context.value(gate_up).dtype
    inner = _computed_in(given, context)
    logarithm, factor = logarithms_and_factor(writer, node, context, count)
    # Casts that stand in the graph are folded into the weights once, at load; those that ONNX Runtime would insert come
    # after folding, and run each time.
    x, gate_up, down = (cast(writer, value, given, inner) for value in (x, gate_up, down))
    mixed = writer.add("MoE", [x, cast(writer, logarithm, FLOAT32, inner), gate_up, "", down], **swiglu_attributes(min(top_k, count)))
    alike = inner == given
    y = writer.add("Mul", [mixed, cast(writer, factor, FLOAT32, inner)], output=node.output[0] if alike else None)
    if not alike:
        cast(writer, y, inner, given, node.output[0])
    return Replacement(tuple(writer.nodes), tuple(writer.initializers), {"com.microsoft": 1})


def _computed_in(dtype: int | None, context: Context) -> int | None:
    """The float type that the kernel computes experts of ``dtype`` in: theirs, or float32 for float16."""
    if dtype in PRECISIONS and context.capabilities.computes(KERNEL, PRECISIONS[dtype]):
        return dtype
    return FLOAT32 if PRECISIONS.get(dtype) == "fp16" else None


MOE_ORT = Lowerer("moe_ort", refuses, rewrite)
