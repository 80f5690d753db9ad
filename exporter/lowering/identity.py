"""A collective among one rank is nothing."""

from typing import TYPE_CHECKING

from ..ops import attributes_of
from .rewrite import Context, Lowerer, Refusal, Replacement, scope_of

if TYPE_CHECKING:
    import onnx


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    ranks = attributes_of(node)["ranks"]
    return Refusal(f"{ranks} ranks take part") if ranks > 1 else None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    """An Identity, since both names may be the graph's own; runtimes drop it."""
    from onnx import helper

    return Replacement((helper.make_node("Identity", node.input, node.output, name=scope_of(node).node("Identity")),))


IDENTITY = Lowerer("identity", refuses, rewrite)
