"""A custom op becomes its function body: what every backend can run.

Runtimes inline bodies themselves, but TensorRT then gives inner nodes clashing names and loses their values; so we
name them under the node.
"""

from typing import TYPE_CHECKING

from ..ops import body_of
from .rewrite import Context, Lowerer, Refusal, Replacement, Scope, scope_of

if TYPE_CHECKING:
    import onnx


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    body, scope = body_of(node), scope_of(node)
    names = dict(zip(body.input, node.input, strict=False)) | dict(zip(body.output, node.output, strict=True))
    attributes = {attribute.name: attribute for attribute in node.attribute}
    return Replacement(tuple(_typed(placed(inner, scope, names, attributes), scope, context) for inner in body.node))


def placed(
    inner: "onnx.NodeProto", scope: Scope, names: dict[str, str], attributes: "dict[str, onnx.AttributeProto]"
) -> "onnx.NodeProto":
    """A node of the body under ``scope``: values renamed, references to the caller's attributes resolved."""
    from onnx import NodeProto

    made = NodeProto()
    made.CopyFrom(inner)
    made.name = scope.node(inner.op_type)
    for values in (made.input, made.output):
        values[:] = [names.setdefault(name, scope.value(name)) if name else "" for name in values]
    for attribute in made.attribute:
        if attribute.ref_attr_name:
            name = attribute.name
            attribute.CopyFrom(attributes[attribute.ref_attr_name])
            attribute.name = name
    return made


def _typed(node: "onnx.NodeProto", scope: Scope, context: Context) -> "onnx.NodeProto":
    """``CastLike`` as ``Cast``, where the type is known: ONNX Runtime folds that one alone."""
    from onnx import helper

    dtype = context.value(node.input[1]).dtype if node.op_type == "CastLike" else None
    return helper.make_node("Cast", node.input[:1], node.output, name=scope.node("Cast"), to=dtype) if dtype else node


INLINE = Lowerer("inline", refuses, rewrite)
