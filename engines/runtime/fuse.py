"""All ranks of a set as one graph, for a process that runs them all on a CPU.

A runtime of one process pays for each graph that it starts, and for each product that two ranks both compute because both need
it. Joined, the ranks' graphs are started once; a collective is an addition in rank order, or a concatenation; and what is
computed from replicated weights, which all ranks then read from one place, is computed once.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.lowering.shapes import shapes_from_inputs
from exporter.models import FAMILIES
from exporter.onnx_files import load_graph
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import Assembly
from exporter.plan.schedule import AllGather, AllReduce, Launch
from exporter.plan.signature import Signature, State, Tensor

if TYPE_CHECKING:
    import onnx

GIVEN = ("token_ids", "start", "select")
"""Inputs that all ranks share."""
MADE = re.compile(r"(\.rows|\.panels|\.scale)*$")
"""What names of tensors that are made of a weight end in."""


@dataclass(frozen=True)
class Fused:
    """The joined graph; its caches are called ``rank.1/layers.3.attention.cache``."""

    model: "onnx.ModelProto"
    """Weights lie in the ranks' folders, under one that the reader names."""
    signature: Signature


def state_name(rank: int, name: str) -> str:
    """What a rank's cache is called among those of all ranks."""
    return f"rank.{rank}/{name}"


def fuse(folder: Path, assemblies: dict[int, Assembly], config: ModelConfig, tensor: int) -> Fused:
    """Join all ranks.

    :param assemblies: by rank; the graphs' files lie in the ranks' folders.
    :param tensor: tensor ranks of a stage.
    """
    import onnx

    shared, model, names, there = _replicated(config), onnx.ModelProto(), {}, set()
    graph = model.graph
    graph.name = "ranks"
    for first in range(0, len(assemblies), tensor):
        ranks = range(first, first + tensor)
        given = {rank: _Names(rank, first, shared, names) for rank in ranks}
        walks = [_launches(assemblies[rank]) for rank in ranks]
        for steps in zip(*walks, strict=True):
            if isinstance(steps[0], Launch):
                for rank, step in zip(ranks, steps, strict=True):
                    file = folder / records.rank_folder(rank) / assemblies[rank].graphs[step.graph]
                    _add(model, load_graph(file), given[rank], records.rank_folder(rank), there)
            else:
                graph.node.extend(_collective(steps, [given[rank] for rank in ranks], assemblies[first]))
        for rank in ranks:
            for name in assemblies[rank].sent:
                names[rank + tensor, name] = given[rank](name)
    signature = _signature(assemblies, names, config.vocab)
    _declare(graph, signature)
    shapes_from_inputs(model)
    _merge_equal(graph)
    return Fused(model, signature)


def _launches(assembly: Assembly) -> Iterator[Launch | AllReduce | AllGather]:
    return (step for step in assembly.steps if isinstance(step, Launch | AllReduce | AllGather))


def _replicated(config: ModelConfig) -> Callable[[str], bool]:
    """Whether all tensor ranks hold the same of a tensor, by its name."""
    keys = [re.escape(key.name).replace(r"\{layer\}", r"\d+") for key in FAMILIES[config.family].KEYS if key.split is None]
    pattern = re.compile("|".join([*keys, r"rope\.\w+"]))
    return lambda name: pattern.fullmatch(MADE.sub("", name)) is not None


class _Names:
    """A rank's names → those of the joined graph."""

    def __init__(self, rank: int, first: int, shared: Callable[[str], bool], known: dict[tuple[int, str], str]) -> None:
        self.rank, self.first, self.shared, self.known = rank, first, shared, known

    def __call__(self, name: str) -> str:
        if not name or name in GIVEN:
            return name
        return self.known.setdefault((self.rank, name), state_name(self.first if self.shared(name) else self.rank, name))


def _add(model: "onnx.ModelProto", part: "onnx.ModelProto", names: _Names, folder: str, there: set[str]) -> None:
    """One graph of one rank.

    :param there: initializers of the graphs before; gets those of this one, and none is named twice.
    """
    import onnx

    model.ir_version = max(model.ir_version, part.ir_version)
    opsets = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in part.opset_import if entry.domain not in opsets)
    functions = {(function.domain, function.name) for function in model.functions}
    model.functions.extend(function for function in part.functions if (function.domain, function.name) not in functions)
    for tensor in part.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            names.known[names.rank, tensor.name] = _constant_name(tensor)
        if names(tensor.name) in there:
            continue
        there.add(names(tensor.name))
        made = model.graph.initializer.add()
        made.CopyFrom(tensor)
        made.name = names(tensor.name)
        for entry in made.external_data:
            if entry.key == "location":
                entry.value = f"{folder}/{entry.value}"
    for node in part.graph.node:
        model.graph.node.append(_renamed(node, names))
    for value in (*part.graph.value_info, *part.graph.output):
        made = onnx.ValueInfoProto()
        made.CopyFrom(value)
        made.name = names(value.name)
        model.graph.value_info.append(made)


def _constant_name(tensor: "onnx.TensorProto") -> str:
    """Small values that a graph holds are called after their content: equal ones are one."""
    import onnx

    nameless = onnx.TensorProto()
    nameless.CopyFrom(tensor)
    nameless.name = ""
    return f"constant.{hashlib.sha256(nameless.SerializeToString(deterministic=True)).hexdigest()[:16]}"


def _merge_equal(graph: "onnx.GraphProto") -> None:
    """Of nodes that compute the same of the same, the first; in place. All ops here are functions of their inputs."""
    first, renamed, kept = {}, {}, []
    fixed = {value.name for value in graph.output}
    for node in graph.node:
        _rename_inputs(node, renamed)
        attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        key = (node.domain, node.op_type, tuple(node.input), attributes)
        branches = any(attribute.HasField("g") for attribute in node.attribute)
        if branches or fixed.intersection(node.output) or key not in first:
            first.setdefault(key, node)
            kept.append(node)
        else:
            renamed |= dict(zip(node.output, first[key].output, strict=True))
    del graph.node[:]
    graph.node.extend(kept)


def _rename_inputs(node: "onnx.NodeProto", renamed: dict[str, str]) -> None:
    """What a node and its branches read, by its new name; names within branches are their own."""
    node.input[:] = [renamed.get(name, name) for name in node.input]
    for inner in (inner for attribute in node.attribute if attribute.HasField("g") for inner in attribute.g.node):
        _rename_inputs(inner, renamed)


def _renamed(node: "onnx.NodeProto", names: _Names) -> "onnx.NodeProto":
    """A node with its values, and those of its branches, under the joined graph's names."""
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.name = state_name(names.rank, node.name)
    made.input[:] = [names(name) for name in node.input]
    made.output[:] = [names(name) for name in node.output]
    for attribute in made.attribute:
        if attribute.HasField("g"):
            branch = attribute.g
            inner = [_renamed(one, names) for one in branch.node]
            del branch.node[:]
            branch.node.extend(inner)
            for value in (*branch.output, *branch.value_info, *branch.initializer):
                value.name = names(value.name)
    return made


def _collective(steps: tuple[AllReduce | AllGather, ...], names: list[_Names], assembly: Assembly) -> "Iterator[onnx.NodeProto]":
    """What ``collectives`` does with the parts: in rank order, in float32, rounded once. All ranks go on with one result."""
    from onnx import TensorProto, helper

    step, parts = steps[0], [name(step.value) for name, step in zip(names, steps, strict=True)]
    result = names[0](step.result)
    for name, other in zip(names[1:], steps[1:], strict=True):
        name.known[name.rank, other.result] = result
    if isinstance(step, AllGather):
        yield helper.make_node("Concat", parts, [result], name=f"{result}/Concat", axis=-1)
        return
    half = next(tensor.dtype for signature in assembly.signatures.values() for tensor in signature.outputs if tensor.name == step.value) != "float32"
    if half:
        for number, part in enumerate(parts):
            yield helper.make_node("Cast", [part], [f"{result}/wide_{number}"], name=f"{result}/Cast_{number}", to=TensorProto.FLOAT)
        parts = [f"{result}/wide_{number}" for number in range(len(parts))]
    total = parts[0]
    for number, part in enumerate(parts[1:], 1):
        last = number == len(parts) - 1 and not half
        made = result if last else f"{result}/sum_{number}"
        yield helper.make_node("Add", [total, part], [made], name=f"{result}/Add_{number}")
        total = made
    if half:
        yield helper.make_node("Cast", [total], [result], name=f"{result}/Cast", to=TensorProto.FLOAT16)


def _signature(assemblies: dict[int, Assembly], names: dict[tuple[int, str], str], vocab: int) -> Signature:
    """Tokens in, logits out, and every rank's caches."""
    inputs, caches, states = {}, [], []
    for rank, assembly in assemblies.items():
        for signature in assembly.signatures.values():
            inputs |= {tensor.name: tensor for tensor in signature.inputs if tensor.name in GIVEN}
            for state in signature.states:
                (shape,) = (tensor for tensor in signature.inputs if tensor.name == state.input)
                caches.append((Tensor(state_name(rank, state.input), shape.dtype, shape.shape), names[rank, state.output]))
                states.append(State(caches[-1][0].name, caches[-1][1]))
    last = max(assemblies)
    logits = next(tensor for signature in assemblies[last].signatures.values() for tensor in signature.outputs if tensor.name in ("logits", "head.partial"))
    results = [Tensor(result, tensor.dtype, tensor.shape) for tensor, result in caches]
    return Signature((*inputs.values(), *(tensor for tensor, _ in caches)), (Tensor(names[last, "logits"], logits.dtype, (*logits.shape[:-1], vocab)), *results), tuple(states))


def _declare(graph: "onnx.GraphProto", signature: Signature) -> None:
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
    for tensors, place in ((signature.inputs, graph.input), (signature.outputs, graph.output)):
        place.extend(helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], tensor.shape) for tensor in tensors)
    taken = {value.name for value in (*graph.input, *graph.output)}
    kept = [value for value in graph.value_info if value.name not in taken]
    del graph.value_info[:]
    graph.value_info.extend(kept)
