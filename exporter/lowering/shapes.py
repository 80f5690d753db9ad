"""Dimensions are read from the graph's inputs: what depends on them alone is then computed once, not once a layer.

Each segment reads the number of rows and tokens from its own input, so that it can stand alone. In a graph of many segments
those are other values of the same shape, and ONNX Runtime, which merges equal nodes, does not know that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def shapes_from_inputs(model: "onnx.ModelProto") -> None:
    """Each ``Shape`` of a value whose dimensions are declared reads an input with the same names at the same places; in place."""
    graph = model.graph
    dims = {value.name: _dims(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    inputs = {value.name: dims[value.name] for value in graph.input}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in dims:
            begin, end = _bounds(node)
            wanted = dims[node.input[0]][begin:end]
            if wanted and all(isinstance(dim, str) and dim for dim in wanted):
                node.input[0] = next((name for name, there in inputs.items() if there[begin:end] == wanted), node.input[0])


def _dims(value: "onnx.ValueInfoProto") -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _bounds(node: "onnx.NodeProto") -> tuple[int, int | None]:
    """Of the dimensions that a ``Shape`` gives."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    return given.get("start", 0), given.get("end")
