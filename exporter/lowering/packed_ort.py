"""Products on ONNX Runtime by our own kernels for CPUs (``engines/cpp/ops``, docs/cpu-kernels.md), where the builder gives their library.

``Experts`` and ``QuantizedExperts`` → ``moetrt.PackedExperts``, a product with a dequantised or a float32 matrix → ``moetrt.PackedLinear``, three of them that make a
feed-forward → ``moetrt.PackedFeedForward``, and a ``Route`` that experts of ours read stays what it is. The kernels multiply
integers: int8 as calibrated where activations are rounded, and where they are not, activations in three digits of int8, which is
float32's precision; in two, finer than float16, where the builder may substitute. Matrices of float32 are kept as bfloat16 where every value
is one, as in every released checkpoint: half the bytes and the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..ops import DOMAIN, attributes_of
from .linear_ort import is_linear
from .nodes import FLOAT32, PRECISIONS, NodeWriter, placeholder
from .panels import LANES, derived_floats, derived_panel_scales, derived_panels
from .rewrite import Context, Derived, Lowerer, Refusal, Replacement, Scope, scope_of

if TYPE_CHECKING:
    import onnx

ROUTE, EXPERTS, PRODUCT, FEED_FORWARD, ATTENTION = (f"{DOMAIN}.cpu.{op}" for op in ("Route", "PackedExperts", "PackedLinear", "PackedFeedForward", "LatentAttention"))
"""As capabilities name them."""
OPS = frozenset({ROUTE, EXPERTS, PRODUCT, FEED_FORWARD, ATTENTION})
UNIT = 32
"""Inputs that share a scale are a multiple of so many."""
MOST = 65536
"""Inputs of a matrix: of more, a sum of products of integers could overflow 32 bits."""
FLOAT_LINEAR = "Linear"
"""What a ``MatMul`` by a stored float32 matrix is called among lowerings."""


def is_float_linear(node: "onnx.NodeProto", context: Context) -> bool:
    """Whether a node multiplies by a stored matrix of float32, and the backend has a kernel for that."""
    if node.op_type != "MatMul" or node.domain or not context.capabilities.has(PRODUCT):
        return False
    weight = context.initializers.get(node.input[1])
    return weight is not None and weight.data_type == FLOAT32 and len(weight.dims) == 2


def absent(context: Context, kernel: str) -> Refusal | None:
    """Why a kernel of ours is not taken where the library is not at hand."""
    if context.capabilities.has(kernel):
        return None
    return Refusal(f"{context.capabilities.backend} has no {kernel} (our kernels for CPUs: build --plugins)")


def _refuses_matrix(inputs: int, block: int, floats: int | None, context: Context) -> Refusal | None:
    """:param floats: the type of the matrix's scale, or of its own."""
    if PRECISIONS.get(floats) != "fp32":
        return Refusal(f"the kernel computes in fp32, not {PRECISIONS.get(floats)}")
    if block % UNIT or inputs % (block or 1):
        return Refusal(f"the kernel takes blocks of a multiple of {UNIT} that divide the inputs, not {block} of {inputs}")
    if inputs > MOST:
        return Refusal(f"{inputs} inputs could overflow a sum of the kernel's")
    return None if context.derives else Refusal("the kernel wants weights in another order, and nobody writes them here")


def refuses_linear(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if missing := absent(context, PRODUCT):
        return missing
    matrix = _matrix(node, context)
    if _is_rounded(node.input[0], context) and not _rounded(node.input[0], context):
        return Refusal("activations are rounded, but not by one symmetric scale")
    return _refuses_matrix(matrix.inputs, matrix.block, matrix.floats, context)


def rewrite_linear(node: "onnx.NodeProto", context: Context) -> Replacement:
    matrix, writer = _matrix(node, context), NodeWriter(Scope(node.name.rpartition("/")[0]))
    derived, rounded = matrix.derived(), _rounded(node.input[0], context)
    x, scale, activations = (rounded.input[0], [rounded.input[1]], "static") if rounded else (node.input[0], [], matrix.activations(context))
    sizes = {"K": matrix.inputs, "N": matrix.outputs, "block": matrix.block, "bits": matrix.bits}
    operands = [x, *matrix.operands(), *scale]
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
    if missing := absent(context, FEED_FORWARD):
        return missing
    found = _feed_forward(node, context)
    if not found:
        return Refusal("it does not end a SwiGLU of two products with stored matrices")
    down = _matrix(node, context)
    if any((one.block, one.bits, one.floats) != (down.block, down.bits, down.floats) for one in map(partial(_matrix, context=context), found)):
        return Refusal("its matrices are not stored alike")
    if down.inputs % LANES or down.outputs % LANES:
        return Refusal(f"the kernel takes multiples of {LANES}, not the hidden size {down.outputs} and the width {down.inputs}")
    if any(_is_rounded(one.input[0], context) for one in (found[0], node)):
        return Refusal("activations are rounded by scales of their own")
    return next(filter(None, (refuses_linear(one, context) for one in (*found, node))), None)


def rewrite_feed_forward(node: "onnx.NodeProto", context: Context) -> Replacement:
    found, writer = _feed_forward(node, context), NodeWriter(Scope(node.name.rpartition("/")[0].rpartition("/")[0]))
    matrices = [_matrix(one, context) for one in (*found, node)]
    derived = tuple(made for matrix in matrices for made in matrix.derived())
    down, names = matrices[-1], [name for matrix in matrices for name in matrix.operands()]
    sizes = {"hidden": down.outputs, "width": down.inputs, "block": down.block, "bits": down.bits}
    writer.add("PackedFeedForward", [found[0].input[0], *names], node.output[0], domain=DOMAIN, activations=down.activations(context), **sizes)
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived)


def _feed_forward(node: "onnx.NodeProto", context: Context) -> "tuple[onnx.NodeProto, onnx.NodeProto] | None":
    """The products that make gate and up, where ``node`` multiplies silu(gate) * up."""
    activated, up = _factors(context.maker(node.input[0]), context)
    gate, sigmoid = _factors(activated, context)
    if sigmoid is None or sigmoid.op_type != "Sigmoid" or up is None or gate is None or sigmoid.input[0] != gate.output[0]:
        return None
    return (gate, up) if _is_product(gate, context) and _is_product(up, context) and gate.input[0] == up.input[0] else None


def _is_product(node: "onnx.NodeProto", context: Context) -> bool:
    return is_linear(node, context) or is_float_linear(node, context)


def _factors(node: "onnx.NodeProto | None", context: Context) -> "tuple[onnx.NodeProto | None, onnx.NodeProto | None]":
    """What makes the two factors of a product by elements."""
    return (context.maker(node.input[0]), context.maker(node.input[1])) if node is not None and node.op_type == "Mul" else (None, None)


def refuses_experts(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if missing := absent(context, EXPERTS):
        return missing
    made = _mixture(node, context)
    if made.hidden % LANES or made.width % LANES:
        return Refusal(f"the kernel takes multiples of {LANES}, not the hidden size {made.hidden} and the width {made.width}")
    refusals = (_refuses_matrix(inputs, made.block, made.floats, context) for inputs in (made.hidden, made.width))
    return next(filter(None, refusals), None)


def rewrite_experts(node: "onnx.NodeProto", context: Context) -> Replacement:
    made, writer = _mixture(node, context), NodeWriter(scope_of(node))
    attributes: dict[str, Any] = {"first_expert": attributes_of(node)["first_expert"], "activations": made.activations}
    attributes |= {"count": made.count, "hidden": made.hidden, "width": made.width, "block": made.block, "bits": made.bits}
    writer.add("PackedExperts", [*node.input[:3], *made.operands], node.output[0], domain=DOMAIN, **attributes)
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, made.derived)), {DOMAIN: 1}, made.derived)


@dataclass(frozen=True)
class _Mixture:
    """The experts of a node, as the kernel takes them."""

    count: int
    hidden: int
    width: int
    bits: int
    block: int
    """Inputs that share a scale, 0 for all."""
    floats: int | None
    """The type of the scales, or of the weights themselves."""
    activations: str
    derived: tuple[Derived, ...]
    operands: tuple[str, ...]


def _mixture(node: "onnx.NodeProto", context: Context) -> _Mixture:
    return _floats(node, context) if node.op_type == "Experts" else _integers(node, context)


def _floats(node: "onnx.NodeProto", context: Context) -> _Mixture:
    names, gate_up, down = node.input[3:5], context.value(node.input[3]), context.value(node.input[4])
    bits, (count, hidden, width) = max(float_bits(name, context) for name in names), down.shape
    derived = tuple(derived_floats(name, value.shape, bits, paired, rows=True) for name, value, paired in zip(names, (gate_up, down), (True, False), strict=True))
    return _Mixture(count, hidden, width, bits, 0, gate_up.dtype, "float", derived, (derived[0].name, "", derived[1].name))


def _integers(node: "onnx.NodeProto", context: Context) -> _Mixture:
    given, gate_up, down = attributes_of(node), context.value(node.input[3]), context.value(node.input[5])
    bits, scales = _bits(gate_up.dtype), [context.value(node.input[place]) for place in (4, 6)]
    derived = (
        derived_panels(node.input[3], gate_up.shape, bits, paired=True),
        derived_panel_scales(node.input[4], scales[0].shape, float_bits(node.input[4], context), paired=True),
        derived_panels(node.input[5], down.shape, bits),
        derived_panel_scales(node.input[6], scales[1].shape, float_bits(node.input[6], context)),
    )
    operands = (*(made.name for made in derived), *node.input[7:])
    activations = _rounding(given["activations"], context)
    return _Mixture(gate_up.shape[0], gate_up.shape[1], down.shape[1], bits, given.get("block_size", 0), scales[0].dtype, activations, derived, operands)


def refuses_route(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if missing := absent(context, ROUTE):
        return missing
    for reader in (reader for name in node.output for reader in context.readers.get(name, ())):
        if reader.domain != DOMAIN or reader.op_type not in ("Experts", "QuantizedExperts") or refuses_experts(reader, context):
            return Refusal(f"{reader.name} is not computed by our kernels")
    return None


def rewrite_route(node: "onnx.NodeProto", context: Context) -> Replacement:
    return Replacement((node,), domains={DOMAIN: 1})


def _rounding(activations: str, context: Context) -> str:
    """What the kernel does to activations: those that stay float are three digits, or two where the builder may substitute."""
    return "fine" if activations == "float" and context.fast else activations


@dataclass(frozen=True)
class _Matrix:
    """A stored matrix that a product reads: as it is, or dequantised."""

    weight: "onnx.TensorProto"
    scale: "onnx.TensorProto | None"
    """None for a matrix of floats."""
    bits: int
    block: int = 0
    """Inputs that share a scale, 0 for all."""
    scale_bits: int = 32

    @property
    def inputs(self) -> int:
        return self.weight.dims[0]

    @property
    def outputs(self) -> int:
        return self.weight.dims[1]

    @property
    def floats(self) -> int:
        """The type of the scale, or of the values themselves."""
        return (self.scale or self.weight).data_type

    def activations(self, context: Context) -> str:
        """What the kernel does to activations that stay float."""
        return _rounding("float", context) if self.scale is not None else "float"

    def derived(self) -> tuple[Derived, ...]:
        shape = tuple(self.weight.dims)
        if self.scale is None:
            return (derived_floats(self.weight.name, shape, self.bits),)
        return derived_panels(self.weight.name, shape, self.bits), derived_panel_scales(self.scale.name, tuple(self.scale.dims), self.scale_bits)

    def operands(self) -> list[str]:
        """The matrix and its scale, as a node takes them."""
        names = [made.name for made in self.derived()]
        return names if self.scale is not None else [*names, ""]


def _matrix(node: "onnx.NodeProto", context: Context) -> _Matrix:
    if is_float_linear(node, context):
        return _Matrix(context.initializers[node.input[1]], None, float_bits(node.input[1], context))
    made = context.maker(node.input[1])
    block = next((attribute.i for attribute in made.attribute if attribute.name == "block_size"), 0)
    weight, scale = (context.initializers[name] for name in made.input[:2])
    return _Matrix(weight, scale, _bits(weight.data_type), block, float_bits(scale.name, context))


def float_bits(name: str, context: Context) -> int:
    """What a stored float32 tensor is kept in."""
    return 16 if context.is_bfloat16(name) else 32


def _bits(kind: int) -> int:
    from onnx import TensorProto

    return 4 if kind == TensorProto.INT4 else 8


PACKED_FEED_FORWARD = Lowerer("packed_feed_forward_ort", refuses_feed_forward, rewrite_feed_forward)
PACKED_LINEAR = Lowerer("packed_linear_ort", refuses_linear, rewrite_linear)
PACKED_EXPERTS = Lowerer("packed_experts_ort", refuses_experts, rewrite_experts)
PACKED_ROUTE = Lowerer("packed_route_ort", refuses_route, rewrite_route)
