"""``Experts`` → ONNX Runtime's ``com.microsoft.MoE``: its kernel computes the chosen experts only.

The kernel takes a softmax of ``router_probs`` and has no input for finished weights, so the weights go in as their
logarithms, and what it makes of them (weights that sum to one) is multiplied by their sum. A token without a local
expert has the sum zero.
"""

from typing import TYPE_CHECKING

import numpy as np

from .nodes import NodeWriter, combined_weights, swiglu_attributes, whole_choice
from .rewrite import Context, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.MoE"
FLOOR = 1e-20
"""Stands for the weight zero: its logarithm is finite, its share of a softmax is nothing."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    from onnx import TensorProto

    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    weights, chosen = context.value(node.input[3]), context.value(node.input[1])
    if weights.shape is None or not isinstance(weights.shape[0], int):
        return Refusal("the number of local experts is not known")
    if weights.dtype not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return Refusal(f"the kernel computes float32 and float16, not {TensorProto.DataType.Name(weights.dtype or 0)}")
    if chosen.shape is None or not isinstance(chosen.shape[1], int):
        return Refusal("the number of experts per token is not known")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    from onnx import TensorProto

    writer = NodeWriter(scope_of(node))
    x, chosen, _, gate_up, down = node.input
    count, top_k = context.value(gate_up).shape[0], context.value(chosen).shape[1]
    whole = whole_choice(node, context, count)
    logarithm, total = (whole.logarithms, writer.constant("scale", np.float32(whole.scale))) if whole else _logarithm_and_sum(writer, node, context, count)
    # The kernel exists in float32 alone. Casts that stand in the graph are folded into the weights once, at load;
    # those that ONNX Runtime would insert come after folding, and run each time.
    half = context.value(gate_up).dtype == TensorProto.FLOAT16
    x, gate_up, down = (writer.add("Cast", [value], to=TensorProto.FLOAT) if half else value for value in (x, gate_up, down))
    mixed = writer.add("MoE", [x, logarithm, gate_up, "", down], **swiglu_attributes(min(top_k, count)))
    y = writer.add("Mul", [mixed, total], output=None if half else node.output[0])
    if half:
        writer.add("Cast", [y], output=node.output[0], to=TensorProto.FLOAT16)
    return Replacement(tuple(writer.nodes), tuple(writer.initializers), {"com.microsoft": 1})


def _logarithm_and_sum(writer: NodeWriter, node: "onnx.NodeProto", context: Context, count: int) -> tuple[str, str]:
    """Of each token's weights for local experts: *shape* ``(tokens, count)`` and ``(tokens, 1)``."""
    combine = combined_weights(writer, node, context, count)
    logarithm = writer.add("Log", [writer.add("Max", [combine, writer.constant("floor", np.float32(FLOOR))])])
    return logarithm, writer.add("ReduceSum", [combine, writer.constant("axis_1", [1])], keepdims=1)


MOE_ORT = Lowerer("moe_ort", refuses, rewrite)
