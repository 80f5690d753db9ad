"""Collectives inside a TensorRT engine: its ``DistCollective``, over the communicator of the pipeline stage.

The stage has a communicator of its own, so ``groups`` stays empty: all its ranks take part.
"""

from typing import TYPE_CHECKING

from ..ops import attributes_of
from .rewrite import Context, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "trt.DistCollective"
NO_ROOT = -1
"""The parser's default is another, and is refused."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}; the chain sums between its graphs")
    if node.op_type == "AllGather" and _rank_of(node, context) is None:
        return Refusal("the number of dimensions is not known, so the last axis cannot be brought to the front")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    nodes = _gather(node, context) if node.op_type == "AllGather" else (_collective(node, "all_reduce", "sum", node.input[0], node.output[0]),)
    return Replacement(nodes, domains={"trt": 1})


def _collective(node: "onnx.NodeProto", operation: str, reduce: str, source: str, result: str) -> "onnx.NodeProto":
    from onnx import helper

    return helper.make_node(
        "DistCollective",
        [source],
        [result],
        name=scope_of(node).node("DistCollective"),
        domain="trt",
        collective_operation=operation,
        reduce_op=reduce,
        root=NO_ROOT,
        nb_rank=attributes_of(node)["ranks"],
    )


def _gather(node: "onnx.NodeProto", context: Context) -> "tuple[onnx.NodeProto, ...]":
    """It concatenates along dimension 0: the gathered axis goes there and back."""
    from onnx import helper

    scope, count = scope_of(node), _rank_of(node, context)
    axis = attributes_of(node).get("axis", -1) % count
    forth = [axis, *(dim for dim in range(count) if dim != axis)]
    back = [forth.index(dim) for dim in range(count)]
    mine, all_ranks = scope.value("mine"), scope.value("all")
    return (
        helper.make_node("Transpose", [node.input[0]], [mine], name=scope.node("Transpose"), perm=forth),
        _collective(node, "all_gather", "none", mine, all_ranks),
        helper.make_node("Transpose", [all_ranks], [node.output[0]], name=scope.node("Transpose_1"), perm=back),
    )


def _rank_of(node: "onnx.NodeProto", context: Context) -> int | None:
    """Dimensions of the gathered value: as many before as after."""
    shapes = (context.value(name).shape for name in (node.input[0], node.output[0]))
    return next((len(shape) for shape in shapes if shape is not None), None)


DIST_COLLECTIVE = Lowerer("dist_collective", refuses, rewrite)
