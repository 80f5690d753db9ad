"""Quantised products on ONNX Runtime by our own kernels for CPUs (``engines/cpp/ops``, docs/kernels.md), where the builder gives their library.

``QuantizedExperts`` → ``moetrt.PackedExperts``, a product with a dequantised matrix → ``moetrt.PackedLinear``, three of them that make a
feed-forward → ``moetrt.PackedFeedForward``, and a ``Route`` that experts of ours read stays what it is. The kernels multiply
integers: int8 as calibrated where activations are rounded, and where they are not, activations in three digits of int8, which is
float32's precision; in two, finer than float16, where the builder may substitute.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..ops import DOMAIN, attributes_of
from .linear_ort import is_linear
from .nodes import PRECISIONS, NodeWriter, placeholder
from .panels import LANES, derived_panel_scales, derived_panels
from .rewrite import Context, Derived, Lowerer, Refusal, Replacement, Scope, scope_of

if TYPE_CHECKING:
    import onnx

ROUTE, EXPERTS, PRODUCT, FEED_FORWARD = (f"{DOMAIN}.cpu.{op}" for op in ("Route", "PackedExperts", "PackedLinear", "PackedFeedForward"))
"""As capabilities name them."""
OPS = frozenset({ROUTE, EXPERTS, PRODUCT, FEED_FORWARD})
UNIT = 32
"""Inputs that share a scale are a multiple of so many."""
MOST = 65536
"""Inputs of a matrix: of more, a sum of products could overflow 32 bits."""


def _absent(context: Context, kernel: str) -> Refusal | None:
    if context.capabilities.has(kernel):
        return None
    return Refusal(f"{context.capabilities.backend} has no {kernel} (our kernels for CPUs: build --plugins)")


def _refuses_matrix(inputs: int, block: int, scale: int, context: Context) -> Refusal | None:
    if PRECISIONS.get(scale) != "fp32":
        return Refusal(f"the kernel computes in fp32, not {PRECISIONS.get(scale)}")
    if block % UNIT or inputs % (block or 1):
        return Refusal(f"the kernel takes blocks of a multiple of {UNIT} that divide the inputs, not {block} of {inputs}")
    if inputs > MOST:
        return Refusal(f"{inputs} inputs could overflow a sum of the kernel's")
    return None if context.derives else Refusal("the kernel wants weights in another order, and nobody writes them here")


def refuses_linear(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if absent := _absent(context, PRODUCT):
        return absent
    matrix = _matrix(node, context)
    if _is_rounded(node.input[0], context) and not _rounded(node.input[0], context):
        return Refusal("activations are rounded, but not by one symmetric scale")
    return _refuses_matrix(matrix.inputs, matrix.block, matrix.scale.data_type, context)


def rewrite_linear(node: "onnx.NodeProto", context: Context) -> Replacement:
    matrix, writer = _matrix(node, context), NodeWriter(Scope(node.name.rpartition("/")[0]))
    derived, rounded = matrix.derived(), _rounded(node.input[0], context)
    x, scale, activations = (rounded.input[0], [rounded.input[1]], "static") if rounded else (node.input[0], [], _rounding("float", context))
    sizes = {"K": matrix.inputs, "N": matrix.outputs, "block": matrix.block, "bits": matrix.bits}
    operands = [x, *(made.name for made in derived), *scale]
    writer.add("PackedLinear", operands, node.output[0], domain=DOMAIN, activations=activations, **sizes)
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived)


def _is_rounded(value: str, context: Context) -> bool:
    made = context.maker(value)
    return made is not None and made.op_type == "DequantizeLinear"


def _rounded(value: str, context: Context) -> "onnx.NodeProto | None":
    """The ``QuantizeLinear`` before the ``DequantizeLinear`` that makes a value, where both go by one scale and the zero point 0."""
    node = context.maker(value) if _is_rounded(value, context) else None
    before = context.maker(node.input[0]) if node is not None else None
    if before is None or before.op_type != "QuantizeLinear" or list(before.input[1:]) != list(node.input[1:]) or len(node.input) != 3:
        return None
    scale, zero = (context.initializers.get(name) for name in node.input[1:])
    alike = scale is not None and not scale.dims and zero is not None and not any(zero.raw_data) and not any(zero.int32_data)
    return before if alike else None


def refuses_feed_forward(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if absent := _absent(context, FEED_FORWARD):
        return absent
    found = _feed_forward(node, context)
    if not found:
        return Refusal("it does not end a SwiGLU of two products with dequantised matrices")
    down = _matrix(node, context)
    if any((one.block, one.bits, one.scale.data_type) != (down.block, down.bits, down.scale.data_type) for one in map(partial(_matrix, context=context), found)):
        return Refusal("its matrices are not quantised alike")
    if down.inputs % LANES or down.outputs % LANES:
        return Refusal(f"the kernel takes multiples of {LANES}, not the hidden size {down.outputs} and the width {down.inputs}")
    if any(_is_rounded(one.input[0], context) for one in (found[0], node)):
        return Refusal("activations are rounded by scales of their own")
    return next(filter(None, (refuses_linear(one, context) for one in (*found, node))), None)


def rewrite_feed_forward(node: "onnx.NodeProto", context: Context) -> Replacement:
    found, writer = _feed_forward(node, context), NodeWriter(Scope(node.name.rpartition("/")[0].rpartition("/")[0]))
    matrices = [_matrix(one, context) for one in (*found, node)]
    derived = tuple(made for matrix in matrices for made in matrix.derived())
    down, names = matrices[-1], [made.name for made in derived]
    sizes = {"hidden": down.outputs, "width": down.inputs, "block": down.block, "bits": down.bits}
    writer.add("PackedFeedForward", [found[0].input[0], *names], node.output[0], domain=DOMAIN, activations=_rounding("float", context), **sizes)
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived)


def _feed_forward(node: "onnx.NodeProto", context: Context) -> "tuple[onnx.NodeProto, onnx.NodeProto] | None":
    """The products that make gate and up, where ``node`` multiplies silu(gate) * up."""
    activated, up = _factors(context.maker(node.input[0]), context)
    gate, sigmoid = _factors(activated, context)
    if sigmoid is None or sigmoid.op_type != "Sigmoid" or up is None or gate is None or sigmoid.input[0] != gate.output[0]:
        return None
    return (gate, up) if is_linear(gate, context) and is_linear(up, context) and gate.input[0] == up.input[0] else None


def _factors(node: "onnx.NodeProto | None", context: Context) -> "tuple[onnx.NodeProto | None, onnx.NodeProto | None]":
    """What makes the two factors of a product by elements."""
    return (context.maker(node.input[0]), context.maker(node.input[1])) if node is not None and node.op_type == "Mul" else (None, None)


def refuses_experts(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if absent := _absent(context, EXPERTS):
        return absent
    block, gate_up = attributes_of(node).get("block_size", 0), context.value(node.input[3])
    hidden, width = gate_up.shape[1], gate_up.shape[2] // 2
    if hidden % LANES or width % LANES:
        return Refusal(f"the kernel takes multiples of {LANES}, not the hidden size {hidden} and the width {width}")
    refusals = (_refuses_matrix(inputs, block, context.value(node.input[4]).dtype, context) for inputs in (hidden, width))
    return next(filter(None, refusals), None)


def rewrite_experts(node: "onnx.NodeProto", context: Context) -> Replacement:
    given, gate_up, down = attributes_of(node), context.value(node.input[3]), context.value(node.input[5])
    bits, writer = _bits(gate_up.dtype), NodeWriter(scope_of(node))
    derived = (
        derived_panels(node.input[3], gate_up.shape, bits, paired=True),
        derived_panel_scales(node.input[4], context.value(node.input[4]).shape, paired=True),
        derived_panels(node.input[5], down.shape, bits),
        derived_panel_scales(node.input[6], context.value(node.input[6]).shape),
    )
    attributes: dict[str, Any] = {"first_expert": given["first_expert"], "activations": _rounding(given["activations"], context)}
    attributes |= {"count": gate_up.shape[0], "hidden": gate_up.shape[1], "width": down.shape[1], "block": given.get("block_size", 0), "bits": bits}
    operands = [*node.input[:3], *(made.name for made in derived), *node.input[7:]]
    writer.add("PackedExperts", operands, node.output[0], domain=DOMAIN, **attributes)
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived)


def refuses_route(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if absent := _absent(context, ROUTE):
        return absent
    for reader in (reader for name in node.output for reader in context.readers.get(name, ())):
        if (reader.domain, reader.op_type) != (DOMAIN, "QuantizedExperts") or refuses_experts(reader, context):
            return Refusal(f"{reader.name} is not computed by our kernels")
    return None


def rewrite_route(node: "onnx.NodeProto", context: Context) -> Replacement:
    return Replacement((node,), domains={DOMAIN: 1})


def _rounding(activations: str, context: Context) -> str:
    """What the kernel does to activations: those that stay float are three digits, or two where the builder may substitute."""
    return "fine" if activations == "float" and context.fast else activations


@dataclass(frozen=True)
class _Matrix:
    """A stored matrix that a product dequantises."""

    weight: "onnx.TensorProto"
    scale: "onnx.TensorProto"
    block: int
    """Inputs that share a scale, 0 for all."""

    @property
    def inputs(self) -> int:
        return self.weight.dims[0]

    @property
    def outputs(self) -> int:
        return self.weight.dims[1]

    @property
    def bits(self) -> int:
        return _bits(self.weight.data_type)

    def derived(self) -> tuple[Derived, Derived]:
        return derived_panels(self.weight.name, tuple(self.weight.dims), self.bits), derived_panel_scales(self.scale.name, tuple(self.scale.dims))


def _matrix(node: "onnx.NodeProto", context: Context) -> _Matrix:
    made = context.maker(node.input[1])
    block = next((attribute.i for attribute in made.attribute if attribute.name == "block_size"), 0)
    return _Matrix(context.initializers[made.input[0]], context.initializers[made.input[1]], block)


def _bits(kind: int) -> int:
    from onnx import TensorProto

    return 4 if kind == TensorProto.INT4 else 8


PACKED_FEED_FORWARD = Lowerer("packed_feed_forward_ort", refuses_feed_forward, rewrite_feed_forward)
PACKED_LINEAR = Lowerer("packed_linear_ort", refuses_linear, rewrite_linear)
PACKED_EXPERTS = Lowerer("packed_experts_ort", refuses_experts, rewrite_experts)
PACKED_ROUTE = Lowerer("packed_route_ort", refuses_route, rewrite_route)
PACKED = {one.name for one in (PACKED_FEED_FORWARD, PACKED_LINEAR, PACKED_EXPERTS, PACKED_ROUTE)}
