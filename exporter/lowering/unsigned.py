"""Activations in uint8 rather than int8: ONNX Runtime's fast form on x86, with the same numbers.

A value q of zero point 0 becomes q + 128 of zero point 128: the kernels that multiply unsigned by signed are up to ten times
as fast as those of signed by signed. TensorRT takes zero points of 0 alone, so this is no part of a portable graph.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

MIDDLE = 128


def unsigned_activations(model: "onnx.ModelProto") -> None:
    """Each ``QuantizeLinear`` of a lowered model by a signed zero, and what dequantises it, becomes unsigned; in place.

    Branches too, by zeros of their own. One whose values something else reads is left as it is, and so are weights, whose ``DequantizeLinear`` reads an initializer.
    """
    _unsigned(model.graph)


def _unsigned(graph: "onnx.GraphProto") -> None:
    from onnx import AttributeProto, TensorProto

    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _unsigned(attribute.g)
    zeros, made = _zeros(graph), {}
    results = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[2] not in zeros:
            continue
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        if node.output[0] in results or not all(_reads_alike(reader, node, zeros) for reader in readers):
            continue
        middle = made.setdefault(node.input[2], _middle(node.input[2], zeros[node.input[2]]))
        for changed in (node, *readers):
            changed.input[2:] = [middle.name]
        _retype(graph, node, TensorProto.UINT8)
    graph.initializer.extend(made.values())


def _zeros(graph: "onnx.GraphProto") -> dict[str, np.ndarray]:
    """Constants of int8 that are zero throughout: initializers, and what ``Constant`` nodes make."""
    from onnx import TensorProto, numpy_helper

    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"}
    tensors = {tensor.name: tensor for tensor in graph.initializer} | constants
    # Weights are int8 too, and may lie in another file: a zero point has none but small dimensions.
    small = {name: tensor for name, tensor in tensors.items() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) < 2 and not tensor.external_data}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in small.items()}
    return {name: array for name, array in arrays.items() if not array.any()}


def _reads_alike(reader: "onnx.NodeProto", node: "onnx.NodeProto", zeros: dict[str, np.ndarray]) -> bool:
    """Whether ``reader`` dequantises what ``node`` makes, by a zero point of zero: given, or left out."""
    given = len(reader.input) < 3 or not reader.input[2] or reader.input[2] in zeros
    return reader.op_type == "DequantizeLinear" and reader.input[0] == node.output[0] and given


def _middle(name: str, zero: np.ndarray) -> "onnx.TensorProto":
    from onnx import numpy_helper

    return numpy_helper.from_array(np.full(zero.shape, MIDDLE, np.uint8), f"{name}.unsigned")


def _retype(graph: "onnx.GraphProto", node: "onnx.NodeProto", dtype: int) -> None:
    """The node's output is of this type wherever the graph says so."""
    for attribute in node.attribute:
        if attribute.name == "output_dtype":
            attribute.i = dtype
    for value in graph.value_info:
        if value.name == node.output[0]:
            value.type.tensor_type.elem_type = dtype
