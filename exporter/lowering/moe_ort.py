"""``Experts`` → ONNX Runtime's ``com.microsoft.MoE``: its kernel computes the chosen experts only.

The kernel takes a softmax of ``router_probs`` and has no input for finished weights, so the weights go in as their
logarithms, and what it makes of them (weights that sum to one) is multiplied by their sum. A token without a local
expert has the sum zero.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..ops import attributes_of
from .rewrite import Context, Lowerer, Refusal, Replacement, Scope, scope_of

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

    writer = _Writer(scope_of(node))
    x, chosen, weights, gate_up, down = node.input
    count, top_k = context.value(gate_up).shape[0], context.value(chosen).shape[1]
    combine = _combine(writer, chosen, weights, attributes_of(node)["first_expert"], count)
    logarithm = writer.add("Log", [writer.add("Max", [combine, writer.constant("floor", np.float32(FLOOR))])])
    total = writer.add("ReduceSum", [combine, writer.constant("axis_1", [1])], keepdims=1)
    # The kernel exists in float32 alone. Casts that stand in the graph are folded into the weights once, at load;
    # those that ONNX Runtime would insert come after folding, and run each time.
    half = context.value(gate_up).dtype == TensorProto.FLOAT16
    x, gate_up, down = (writer.add("Cast", [value], to=TensorProto.FLOAT) if half else value for value in (x, gate_up, down))
    mixed = writer.add("MoE", [x, logarithm, gate_up, "", down], **_moe_attributes(min(top_k, count)))
    y = writer.add("Mul", [mixed, total], output=None if half else node.output[0])
    if half:
        writer.add("Cast", [y], output=node.output[0], to=TensorProto.FLOAT16)
    return Replacement(tuple(writer.nodes), tuple(writer.initializers), {"com.microsoft": 1})


def _combine(writer: "_Writer", chosen: str, weights: str, first: int, count: int) -> str:
    """Each token's weight for each local expert. *Shape:* float32 ``(tokens, experts)``.

    By equality, not OneHot, which wraps negative ids: other ranks' experts must give zero.
    """
    last, ids = writer.constant("last", [-1]), writer.constant("ids", np.arange(first, first + count))
    hit = writer.add("Equal", [writer.add("Unsqueeze", [chosen, last]), ids])
    given = writer.add("Where", [hit, writer.add("Unsqueeze", [weights, last]), writer.constant("zero", np.float32(0))])
    return writer.add("ReduceSum", [given, writer.constant("axis_1", [1])], keepdims=0)


def _moe_attributes(k: int) -> dict[str, Any]:
    """SwiGLU as the kernel knows it, alpha 1 and beta 0 making it silu(gate) * up of interleaved rows."""
    return {
        "domain": "com.microsoft",
        "k": k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
    }


class _Writer:
    """Collects nodes and small initializers under one scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        full, array = self.scope.value(name), np.asarray(value)
        if full not in {tensor.name for tensor in self.initializers}:
            self.initializers.append(numpy_helper.from_array(array, full))
        return full

    def add(self, op_type: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """:returns: the node's output: named, or called after the node."""
        from onnx import helper

        number = sum(node.op_type == op_type for node in self.nodes)
        name = f"{op_type}_{number}" if number else op_type
        output = output or self.scope.value(f"{name}.out")
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=self.scope.node(name), **attributes))
        return output


MOE_ORT = Lowerer("moe_ort", refuses, rewrite)
