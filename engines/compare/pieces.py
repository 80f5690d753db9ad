"""One segment of a rank as a graph of its own: as the folder holds it, or cut out of the rank's single graph.

Engines of one tensor rank are one graph. The values between its segments have names that no lowering changes, so that a
segment is whatever lies between two of them: the very nodes that serve, their weights where they are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import LoadError
from exporter.lowering import reads
from exporter.onnx_files import load_graph
from exporter.plan.manifest import Assembly
from exporter.plan.schedule import AllGather, AllReduce, Launch, Receive
from exporter.plan.signature import BATCH, TOKENS, Signature, State, Tensor

if TYPE_CHECKING:
    import onnx

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Piece:
    """A segment of one rank."""

    model: "onnx.ModelProto | None"
    """None of a plan, into which nobody sees."""
    signature: Signature
    after: tuple[AllReduce | AllGather, ...]
    """What the schedule does before the next segment."""
    choice: str | None
    """The value that tells which experts were chosen, where there is one: by number, or by the logarithm of each one's score."""


@dataclass(frozen=True)
class RankPieces:
    """The segments of one rank, each made when it is asked for."""

    folder: Path
    assembly: Assembly
    names: tuple[str, ...]
    """Of its stage."""
    precision: str
    readable: bool = True
    """Whether its files are graphs; else they are plans, one for each segment."""

    @cached_property
    def whole(self) -> "onnx.ModelProto":
        return self.read(next(iter(self.assembly.graphs.values())))

    def read(self, file: str) -> "onnx.ModelProto":
        return load_graph(self.folder / file)

    def piece(self, name: str) -> Piece:
        """:raises LoadError: the rank's graphs do not make the segment's results."""
        if not self.readable:
            return Piece(None, self.assembly.signatures[name], self._after(name), None)
        if name in self.assembly.graphs:
            model, signature = self.read(self.assembly.graphs[name]), self.assembly.signatures[name]
        else:
            model, signature = cut(self.whole, self.assembly, name, self._between)
        choice = choice_of(model.graph)
        if choice:
            model, signature = _with_output(model, choice), replace(signature, outputs=(*signature.outputs, Tensor(choice, "", ())))
        return Piece(model, signature, self._after(name), choice)

    @cached_property
    def _between(self) -> dict[str, Tensor]:
        """Values that one segment may hand to another, by name."""
        received = {name for step in self.assembly.steps if isinstance(step, Receive) for name in step.values}
        known = {*received, "embed.hidden", *(f"{name}.{what}" for name in self.names for what in ("hidden", "update"))}
        shape = (BATCH, TOKENS, next(tensor.shape[-1] for tensor in _streams(self.whole.graph, known)))
        return {name: Tensor(name, DTYPES[self.precision], shape) for name in known}

    def _after(self, name: str) -> tuple[AllReduce | AllGather, ...]:
        """The collectives between this launch and the next."""
        found, inside = [], False
        for step in self.assembly.steps:
            if isinstance(step, Launch):
                inside = step.graph == name
            elif inside and isinstance(step, AllReduce | AllGather):
                found.append(step)
        return tuple(found)


def _streams(graph: "onnx.GraphProto", known: set[str]) -> Iterable[Tensor]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name in known and dims and dims[-1].dim_value:
            yield Tensor(value.name, "", tuple(dim.dim_param or dim.dim_value for dim in dims))


def cut(whole: "onnx.ModelProto", assembly: Assembly, name: str, between: dict[str, Tensor]) -> "tuple[onnx.ModelProto, Signature]":
    """The nodes of one segment, from the values that other segments make to those that it makes.

    :param between: what segments hand to each other.
    """
    import onnx

    signature = next(iter(assembly.signatures.values()))
    makers = {output: node for node in whole.graph.node for output in node.output}
    states = tuple(state for state in signature.states if state.input.startswith(f"{name}."))
    wanted = _results(name, makers, states)
    given, nodes = _slice(whole.graph, wanted, makers, set(between))
    tensors = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)} | between
    inputs = tuple(tensors[one] for one in given if one in tensors)
    used = {one for node in nodes for one in reads(node)}
    model = onnx.ModelProto(ir_version=whole.ir_version, producer_name=whole.producer_name, opset_import=whole.opset_import, functions=whole.functions)
    model.graph.name = name
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in used)
    declared = {value.name: value for value in (*whole.graph.input, *whole.graph.output, *whole.graph.value_info)}
    _declare(model.graph.input, inputs, declared)
    _declare(model.graph.output, tuple(tensors[one] for one in wanted), declared)
    return model, Signature(inputs, tuple(tensors[one] for one in wanted), states)


def _results(name: str, makers: "dict[str, onnx.NodeProto]", states: tuple[State, ...]) -> list[str]:
    usual = {"embed": ["embed.hidden"], "head": ["logits"]}.get(name, [f"{name}.hidden", f"{name}.update"])
    found = [one for one in usual if one in makers]
    if not found or (len(usual) > 1 and usual[1] not in makers):
        raise LoadError(f"the graph makes no {usual[-1]}.", hint="It was changed since it was built; build it again.")
    return [*found, *(state.output for state in states)]


def _slice(graph: "onnx.GraphProto", wanted: list[str], makers: "dict[str, onnx.NodeProto]", borders: set[str]) -> "tuple[list[str], list[onnx.NodeProto]]":
    """Inputs and nodes that ``wanted`` depends on, no further than ``borders``."""
    given, keep, seen, waiting = [], set(), set(wanted), list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in makers or (name in borders and name not in wanted):
            given.append(name)
            continue
        node = makers[name]
        keep.add(node.name)
        fresh = reads(node) - seen - {""}
        seen |= fresh
        waiting += fresh
    stored = {tensor.name for tensor in graph.initializer}
    return sorted(name for name in given if name not in stored), [node for node in graph.node if node.name in keep]


def _declare(place: "object", tensors: tuple[Tensor, ...], declared: "dict[str, onnx.ValueInfoProto]") -> None:
    import onnx

    for tensor in tensors:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(_numpy(tensor.dtype))
        place.append(declared.get(tensor.name) or onnx.helper.make_tensor_value_info(tensor.name, dtype, tensor.shape))


def _numpy(name: str) -> "object":
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def external(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Initializers whose bytes lie in a file beside the graph."""
    return (tensor for tensor in graph.initializer if tensor.data_location == tensor.EXTERNAL)


def choice_of(graph: "onnx.GraphProto") -> str | None:
    """The value that tells which experts were chosen: of ``Route``, of the kernel in its place, or of its body's last ``TopK``."""
    found = None
    for node in graph.node:
        if node.op_type in ("Route", "MoEGroupRouter"):
            return node.output[0]
        if node.op_type == "TopK":
            found = node.output[1]
    return found


def _with_output(model: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    import onnx

    maker = next(node for node in model.graph.node if name in node.output)
    dtype = onnx.TensorProto.FLOAT if maker.op_type == "MoEGroupRouter" else onnx.TensorProto.INT64
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
    return model
