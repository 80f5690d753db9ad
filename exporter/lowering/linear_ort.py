"""A product with a dequantised matrix → ONNX Runtime's ``com.microsoft.MatMulNBits``: the matrix stays in its few bits.

ONNX Runtime would fuse the pair itself, at each load and into memory of its own; made at build time, the packed matrix is mapped.
With 4 bits the kernel can compute in float32 what the pair computes. With 8 it does so at a thirtieth of the speed: there it
is taken only where the builder may substitute, and rounds each block of activations to int8.
"""

from typing import TYPE_CHECKING

from .nodes import PRECISIONS, NodeWriter, placeholder
from .packing import BLOCKS, STORED, block_of, derived_rows, derived_scales
from .rewrite import Context, Lowerer, Refusal, Replacement, Scope

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.MatMulNBits"
LINEAR = "QuantizedLinear"
"""What a ``MatMul`` by a dequantised matrix is called among lowerings."""
ROUNDS = "com.microsoft.MatMulNBits/int8"
"""Whether the kernel is fast with 8-bit weights only where it rounds activations: so the one for CPUs."""
EXACT, INT8 = 1, 4
"""The kernel's accuracy levels: activations as they are, and in blocks of int8."""


def is_linear(node: "onnx.NodeProto", context: Context) -> bool:
    """Whether a node multiplies by a matrix that lies quantised in the weights file."""
    if node.op_type != "MatMul" or node.domain:
        return False
    made = context.maker(node.input[1])
    return made is not None and made.op_type == "DequantizeLinear" and made.input[0] in context.initializers


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    from onnx import TensorProto

    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    source, matrix = context.maker(node.input[0]), context.maker(node.input[1])
    if source is not None and source.op_type == "DequantizeLinear":
        return Refusal("activations are rounded already: the pair is one product of integers as it stands")
    weight, scale = (context.initializers[name] for name in matrix.input[:2])
    if not context.capabilities.computes(KERNEL, PRECISIONS[scale.data_type]):
        return Refusal(f"the kernel does not compute in {PRECISIONS[scale.data_type]}")
    if weight.data_type != TensorProto.INT4 and not context.fast and context.capabilities.has(ROUNDS):
        return Refusal("the kernel rounds activations of 8-bit weights; build --fast allows that")
    if _block(matrix, weight) is None:
        return Refusal(f"{weight.dims[0]} inputs are no multiple of a block that the kernel takes")
    if not context.derives:
        return Refusal("the kernel wants weights in another order, and nobody writes them here")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    from onnx import TensorProto

    matrix = context.maker(node.input[1])
    weight, scale = (context.initializers[name] for name in matrix.input[:2])
    bits, block, (inputs, outputs) = 4 if weight.data_type == TensorProto.INT4 else 8, _block(matrix, weight), weight.dims
    blocks = inputs // block
    stored = tuple(scale.dims) if len(scale.dims) == 2 else (1, *scale.dims)
    derived = (derived_rows(weight.name, (inputs, outputs), bits, (blocks, block * bits // 8)), derived_scales(scale.name, stored, blocks // stored[0], dtype=STORED[PRECISIONS[scale.data_type]]))
    writer = NodeWriter(Scope(node.name.rpartition("/")[0]))
    writer.add(
        "MatMulNBits",
        [node.input[0], *(made.name for made in derived)],
        node.output[0],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=INT8 if context.fast else EXACT,
    )
    return Replacement(tuple(writer.nodes), tuple(map(placeholder, derived)), {"com.microsoft": 1}, derived)


def _block(matrix: "onnx.NodeProto", weight: "onnx.TensorProto") -> int | None:
    """Inputs that share a scale, as written; of a scale for all inputs, as the kernel gets it."""
    given = next((attribute.i for attribute in matrix.attribute if attribute.name == "block_size"), 0)
    return block_of(weight.dims[0]) if not given else given if given in BLOCKS and weight.dims[0] % given == 0 else None


NBITS_ORT = Lowerer("nbits_ort", refuses, rewrite)
