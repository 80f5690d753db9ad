"""Float graphs become quantised ones: Q/DQ pairs around each linear, ``QuantizedExperts`` for the routed experts.

The one form that ONNX Runtime and TensorRT both compile to INT8 products: explicit signed zero points, a pair of its
own for each consumer, weights by output channel (experts: a nominal scale and a factor after the product).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Layout
from exporter.graph.assemble import finish
from exporter.ops import DOMAIN, attributes_of
from exporter.ops.quantized_experts import FLOOR

from .schemes import FLOAT, STATIC, TOKEN, QuantScheme
from .table import LEVELS

if TYPE_CHECKING:
    import numpy as np
    import onnx

WEIGHTS = "weights.safetensors"
NOMINAL = 1 / 128
"""Scale of a pair around which a token's own range is divided out and multiplied in: products then stay small in float16."""
ZERO_POINT = "zero_point.int8"


class Insertion:
    """How the graphs of one rank are rewritten.

    :param scheme: the width of weights, and which inputs share a scale.
    :param modes: quantised weight → what becomes of its input.
    :param scales: weight → scale of its input, where it is static: a scalar, in the graphs' precision.
    :param placed: the new weights file.
    """

    def __init__(self, scheme: QuantScheme, modes: dict[str, str], scales: "dict[str, np.ndarray]", placed: Layout, dtype: "np.dtype") -> None:
        self.scheme, self.modes, self.scales, self.dtype = scheme, modes, scales, dtype
        self.places = {place.name: place for place in placed.tensors}

    def rewrite(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """The quantised model; ``model`` itself is left as it is."""
        import onnx

        graph = onnx.GraphProto()
        graph.CopyFrom(model.graph)
        del graph.node[:], graph.initializer[:]
        graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL)
        writer = Writer(graph)
        for node in model.graph.node:
            if node.op_type == "MatMul" and node.input[1] in self.modes:
                self._linear(writer, node)
            elif node.domain == DOMAIN and node.op_type == "Experts" and node.input[3] in self.modes:
                self._experts(writer, node)
            else:
                graph.node.append(node)
        used = {name for node in graph.node for name in node.input}
        graph.initializer.extend(self._external(name) for name in self.places if name in used)
        return finish(graph, {entry.key: entry.value for entry in model.metadata_props})

    def _external(self, name: str) -> "onnx.TensorProto":
        import onnx

        place = self.places[name]
        kinds = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "I8": "INT8", "I64": "INT64"}
        four = name in self.modes and self.scheme.of(name).bits == 4  # two values in each byte of the file
        kind, dims = ("INT4", (*place.shape[:-1], 2 * place.shape[-1])) if four else (kinds[place.dtype], place.shape)
        made = onnx.TensorProto(name=name, data_type=getattr(onnx.TensorProto, kind), dims=dims, data_location=onnx.TensorProto.EXTERNAL)
        place.refer(made, WEIGHTS)
        return made

    def _linear(self, writer: "Writer", node: "onnx.NodeProto") -> None:
        x, weight = node.input
        path, mode = node.name.rpartition("/")[0], self.modes[weight]
        factor = None
        if mode == TOKEN:
            factor = self._token_range(writer, path, x)
            x = writer.add(path, "Div", [x, factor])
        if mode != FLOAT:
            scale = writer.constant(f"{path[1:]}/input_scale", self.scales[weight] if mode == STATIC else self.dtype.type(NOMINAL))
            x = self._pair(writer, path, x, scale)
        block = self.scheme.of(weight).block
        blocks = {"axis": 0, "block_size": block} if block else {"axis": 1}
        matrix = writer.add(path, "DequantizeLinear", [weight, f"{weight}.scale"], **blocks)
        if factor is None:
            writer.add(path, "MatMul", [x, matrix], node.output[0])
        else:
            product = writer.add(path, "MatMul", [x, matrix], f"{path[1:]}/product")
            writer.add(path, "Mul", [product, factor], node.output[0])

    def _token_range(self, writer: "Writer", path: str, x: str) -> str:
        """max|x| of each row, such that it becomes 127 steps of 1/128; never zero."""
        import numpy as np

        most = writer.add(path, "ReduceMax", [writer.add(path, "Abs", [x]), writer.constant("axis.last", np.array([-1]))], keepdims=1)
        wide = writer.add(path, "Mul", [most, writer.constant("range.steps", self.dtype.type(1 / NOMINAL / LEVELS))])
        return writer.add(path, "Max", [wide, writer.constant("range.floor", self.dtype.type(FLOOR))])

    def _pair(self, writer: "Writer", path: str, x: str, scale: str) -> str:
        import numpy as np

        zero = writer.constant(ZERO_POINT, np.int8(0))
        return writer.add(path, "DequantizeLinear", [writer.add(path, "QuantizeLinear", [x, scale, zero]), scale, zero])

    def _experts(self, writer: "Writer", node: "onnx.NodeProto") -> None:
        import onnx

        x, chosen, weights, gate_up, down = node.input
        inputs = [x, chosen, weights, gate_up, f"{gate_up}.scale", down, f"{down}.scale"]
        if self.modes[gate_up] == STATIC:
            inputs += [writer.constant(f"{gate_up}.input_scale", self.scales[gate_up]), f"{down}.input_scale"]
        path = node.name.rpartition("/")[0]
        attributes = attributes_of(node) | {"activations": self.modes[gate_up], "block_size": self.scheme.block or 0}
        writer.graph.node.append(onnx.helper.make_node("QuantizedExperts", inputs, node.output, name=f"{path}/QuantizedExperts", domain=DOMAIN, **attributes))


class Writer:
    """Appends nodes and small constants to a graph; names are unique."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.graph, self.names, self.constants = graph, set(), set()

    def constant(self, name: str, value: Any) -> str:
        import numpy as np
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, path: str, op_type: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = next(name for name in self._numbered(f"{path}/{op_type}") if name not in self.names)
        self.names.add(name)
        output = output or f"{name[1:]}.out"
        self.graph.node.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    @staticmethod
    def _numbered(name: str) -> Iterator[str]:
        yield name
        number = 0
        while True:
            number += 1
            yield f"{name}_{number}"
