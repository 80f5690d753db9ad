"""The custom ops of the ONNX domain ``moetrt``: one file each, and no framework needed to import them.

A saved graph holds raw nodes of this domain and one function body per op, so that any ONNX runtime can run it::

    functions = bodies(model.graph.node)
    model.functions.extend(functions)

torch's side of the same ops is :mod:`exporter.ops.torch_ops`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from .all_gather import ALL_GATHER
from .all_reduce import ALL_REDUCE
from .experts import EXPERTS
from .op import DOMAIN, OPSET, VERSION, Op
from .quantized_experts import QUANTIZED_EXPERTS
from .route import ROUTE

if TYPE_CHECKING:
    import onnx

__all__ = ["DOMAIN", "OPS", "OPSET", "VERSION", "Op", "attributes_of", "bodies", "body_of"]

OPS: dict[str, Op] = {op.name: op for op in (ROUTE, EXPERTS, QUANTIZED_EXPERTS, ALL_REDUCE, ALL_GATHER)}


def attributes_of(node: "onnx.NodeProto") -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded."""
    from onnx import helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def body_of(node: "onnx.NodeProto") -> "onnx.FunctionProto":
    """The function body of one node of our domain."""
    if node.domain != DOMAIN or node.op_type not in OPS:
        raise ExportError(f"node {node.name!r} is {node.domain}::{node.op_type}, which is no custom op; known: {', '.join(OPS)}.")
    return OPS[node.op_type].function(attributes_of(node), len([name for name in node.input if name]))


def bodies(nodes: "Iterable[onnx.NodeProto]") -> "list[onnx.FunctionProto]":
    """One body per custom op among ``nodes``; nodes of one op must agree on it, as they do within one model."""
    found: dict[str, onnx.FunctionProto] = {}
    for node in nodes:
        if node.domain != DOMAIN:
            continue
        body = body_of(node)
        if found.setdefault(node.op_type, body) != body:
            raise ExportError(f"node {node.name!r} has other attributes than the {node.op_type} nodes before it; a graph holds one body per op.")
    return list(found.values())
