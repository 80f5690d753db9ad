"""Our ops kept as they are, for TensorRT: each a node of the plugin library that ``engines/cpp/plugins`` makes (docs/kernels.md).

A plugin of int8 weights wants them by rows of outputs; they are made anew at build time.
"""

from typing import TYPE_CHECKING

from ..ops import DOMAIN, attributes_of
from .nodes import PRECISIONS, placeholder
from .packing import derived_turned
from .rewrite import Context, Lowerer, Refusal, Replacement

if TYPE_CHECKING:
    import onnx

PLUGINS = ("Route", "Experts", "QuantizedExperts")
"""Ops that the library has plugins for."""
VERSION = "1"
"""``plugin_version``: engines/cpp/plugins/plugin.hpp has the same."""
NAMESPACE = DOMAIN
"""``plugin_namespace``, likewise."""
UNIT = 16
"""What a kernel's rows are multiples of: it copies 16 bytes at a time."""
WEIGHTS = (3, 5)
"""Inputs of ``QuantizedExperts`` that are matrices."""


def kernel(op: str) -> str:
    """As capabilities name it."""
    return f"{DOMAIN}.{op}"


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(kernel(node.op_type)):
        return Refusal(f"{context.capabilities.backend} has no {kernel(node.op_type)} (a plugin of TensorRT's: build --plugins)")
    return None if node.op_type == "Route" else _refuses_experts(node, context)


def _refuses_experts(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    from onnx import TensorProto

    quantised = node.op_type == "QuantizedExperts"
    weight, scale = context.value(node.input[3]), context.value(node.input[4])
    kind = PRECISIONS.get((scale if quantised else weight).dtype)
    if kind is None or not context.capabilities.computes(kernel(node.op_type), kind):
        return Refusal(f"the plugin does not compute in {kind}")
    if not quantised:
        return _refuses_sizes(weight.shape[2], weight.shape[1] // 2)
    if attributes_of(node)["activations"] == "float":
        return Refusal("the plugin multiplies int8 by int8; these activations stay float")
    if weight.dtype != TensorProto.INT8:
        return Refusal("the plugin takes int8 weights")
    if not context.derives:
        return Refusal("the plugin wants weights in another order, and nobody writes them here")
    return _refuses_sizes(weight.shape[1], weight.shape[2] // 2)


def _refuses_sizes(hidden: int, width: int) -> Refusal | None:
    odd = [f"{name} {size}" for name, size in (("hidden size", hidden), ("width", width)) if size % UNIT]
    return Refusal(f"the plugin takes multiples of {UNIT}, not the {' and the '.join(odd)}") if odd else None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    from onnx import NodeProto, helper

    kept, derived = NodeProto(), ()
    kept.CopyFrom(node)
    del kept.attribute[:]
    attributes = attributes_of(node)
    attributes.pop("block_size", None)
    if node.op_type != "Route":
        attributes["all_experts"] = _all_experts(node, context)
    if node.op_type == "QuantizedExperts":
        derived = tuple(derived_turned(node.input[place], context.value(node.input[place]).shape) for place in WEIGHTS)
        for place, made in zip(WEIGHTS, derived, strict=True):
            kept.input[place] = made.name
    attributes |= {"plugin_version": VERSION, "plugin_namespace": NAMESPACE}
    kept.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
    return Replacement((kept,), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived)


def _all_experts(node: "onnx.NodeProto", context: Context) -> int:
    """Of all ranks: as many as the route chooses among; where that is not known, as many as there must be. It decides how rows are cut, not what comes out."""
    route = context.maker(node.input[1])
    known = context.experts_of(route) if route is not None else None
    if known is None and route is not None:
        shape = context.value(route.input[0]).shape
        known = shape[1] if shape and isinstance(shape[1], int) else None
    return known or attributes_of(node)["first_expert"] + context.value(node.input[3]).shape[0]


PLUGIN_TENSORRT = Lowerer("plugin_tensorrt", refuses, rewrite)
