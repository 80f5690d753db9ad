"""What rewrites of the routed experts write alike: nodes under one scope, and each token's weight by local expert."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..ops import attributes_of
from .rewrite import Context, Derived, Scope, Scores

if TYPE_CHECKING:
    import onnx

PRECISIONS = {1: "fp32", 10: "fp16", 16: "bf16"}
"""Float types as ``onnx.TensorProto`` counts them."""
FLOAT32 = 1


def combined_weights(writer: "NodeWriter", node: "onnx.NodeProto", context: Context, count: int) -> str:
    """Each token's weight for each of ``count`` local experts. *Shape:* float32 ``(tokens, count)``.

    :param node: an op whose second and third input are the chosen experts and their weights.
    """
    chosen, weights, first = node.input[1], node.input[2], attributes_of(node)["first_expert"]
    if chosen in context.scores:
        return _weights_of(writer, context.scores[chosen], first, count)
    # By equality, not OneHot, which wraps negative ids: other ranks' experts must give zero.
    last, ids = writer.constant("last", [-1]), writer.constant("ids", np.arange(first, first + count))
    hit = writer.add("Equal", [writer.add("Unsqueeze", [chosen, last]), ids])
    given = writer.add("Where", [hit, writer.add("Unsqueeze", [weights, last]), writer.constant("zero", np.float32(0))])
    return writer.add("ReduceSum", [given, writer.constant("axis_1", [1])], keepdims=0)


def _weights_of(writer: "NodeWriter", scores: Scores, first: int, count: int) -> str:
    made = writer.add("Exp", [scores.logarithms])
    if scores.normalize:
        made = writer.add("Div", [made, writer.add("ReduceSum", [made, writer.constant("axis_1", [1])], keepdims=1)])
    if scores.scale != 1:
        made = writer.add("Mul", [made, writer.constant("scale", np.float32(scores.scale))])
    if count == scores.experts:
        return made
    # Last: what comes before is the same for all ranks, which may compute it once.
    bounds = [writer.constant(f"bound_{bound}", [bound]) for bound in (first, first + count)]
    return writer.add("Slice", [made, *bounds, writer.constant("axis_1", [1])])


FLOOR = 1e-20
"""Stands for the weight zero: its logarithm is finite, its share of a softmax is nothing."""


def logarithms_and_factor(writer: "NodeWriter", node: "onnx.NodeProto", context: Context, count: int) -> tuple[str, str]:
    """What a kernel that takes a softmax of its choice makes the weights of, and what they are to be multiplied by then.

    *Shape:* float32 ``(tokens, count)``, and one that broadcasts to ``(tokens, 1)``: the weights' sum, zero for a token
    without a local expert.
    """
    whole = whole_choice(node, context, count)
    if whole:
        return whole.logarithms, writer.constant("scale", np.float32(whole.scale))
    combine = combined_weights(writer, node, context, count)
    logarithm = writer.add("Log", [writer.add("Max", [combine, writer.constant("floor", np.float32(FLOOR))])])
    return logarithm, writer.add("ReduceSum", [combine, writer.constant("axis_1", [1])], keepdims=1)


def whole_choice(node: "onnx.NodeProto", context: Context, count: int) -> Scores | None:
    """The choice as a kernel gives it, where all experts are local and weights are shares: a kernel's own softmax gives those."""
    scores = context.scores.get(node.input[1])
    return scores if scores and scores.normalize and scores.experts == count else None


def cast(writer: "NodeWriter", value: str, now: int, wanted: int, output: str | None = None) -> str:
    """``value`` in another float type, or itself; under the name ``output``, which a cast of a type to itself is given too."""
    return value if now == wanted and output is None else writer.add("Cast", [value], output, to=wanted)


def placeholder(made: Derived) -> "onnx.TensorProto":
    """An initializer whose place the backend fills in."""
    import onnx

    kind = {"I8": "INT8", "U8": "UINT8", "F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}[made.dtype]
    return onnx.TensorProto(name=made.name, data_type=getattr(onnx.TensorProto, kind), dims=made.shape, data_location=onnx.TensorProto.EXTERNAL)


def swiglu_attributes(k: int) -> dict[str, Any]:
    """SwiGLU as ONNX Runtime's kernels know it, alpha 1 and beta 0 making it silu(gate) * up of interleaved rows."""
    return {
        "domain": "com.microsoft",
        "k": k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
    }


class NodeWriter:
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
