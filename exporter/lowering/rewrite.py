"""The contract of a lowering: it refuses a node with a reason, or says what stands in the node's place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ..ops import DOMAIN, attributes_of
from ..plan.capabilities import Capabilities

if TYPE_CHECKING:
    import numpy as np
    import onnx


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite declines a node."""

    reason: str


@dataclass(frozen=True)
class Derived:
    """A stored tensor in the order that a kernel wants: written beside the engine, once for all graphs of a rank."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    """Stored tensors that it is made of."""
    make: "Callable[..., Iterator[np.ndarray]]"
    """Takes the sources as the file holds them, gives the tensor in pieces along its first axis."""


@dataclass(frozen=True)
class Replacement:
    """What stands in a node's place: it makes the node's outputs, under their names."""

    nodes: "tuple[onnx.NodeProto, ...]"
    initializers: "tuple[onnx.TensorProto, ...]" = ()
    domains: dict[str, int] = field(default_factory=dict)
    """Domain → version, of the ops that it uses beside the standard ones."""
    derived: tuple[Derived, ...] = ()
    """Initializers that the backend has to make."""
    also: frozenset[str] = frozenset()
    """Values that it makes beside the node's outputs: what made them before goes."""


@dataclass(frozen=True)
class Value:
    """What is known of a value before shapes are inferred: ``None`` for what is not."""

    dtype: int | None
    """As ``onnx.TensorProto`` counts them."""
    shape: tuple[int | str | None, ...] | None


UNKNOWN = Value(None, None)


@dataclass(frozen=True)
class Scores:
    """A choice of experts as a kernel gives it: logarithms of the chosen experts' scores, and next to nothing for the others."""

    logarithms: str
    """The value's name. *Shape:* float32 ``(tokens, experts)``"""
    experts: int
    normalize: bool
    """Whether weights are shares of the chosen scores' sum, rather than the scores."""
    scale: float
    """What weights are multiplied by then."""


Asks = Callable[[str], bool]


def unknown(name: str) -> bool:
    """What is said of a stored tensor that cannot be looked into."""
    return False


@dataclass(frozen=True)
class Context:
    """What a rewrite may look at beside its node."""

    graph: "onnx.GraphProto"
    capabilities: Capabilities
    derives: bool = False
    """Whether someone makes the tensors that a rewrite derives."""
    fast: bool = False
    """Whether a faster kernel may stand for one that computes as written."""
    is_bfloat16: Asks = unknown
    """Whether every value of a stored float32 tensor is a bfloat16."""
    scores: dict[str, Scores] = field(default_factory=dict)
    """Chosen experts → how a kernel gives them, of routes that were rewritten before."""

    @cached_property
    def makers(self) -> "dict[str, onnx.NodeProto]":
        """Value → the node that makes it."""
        return {name: node for node in self.graph.node for name in node.output}

    @cached_property
    def readers(self) -> "dict[str, list[onnx.NodeProto]]":
        """Value → the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def initializers(self) -> "dict[str, onnx.TensorProto]":
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def maker(self, name: str) -> "onnx.NodeProto | None":
        return self.makers.get(name)

    @cached_property
    def values(self) -> dict[str, Value]:
        """Declared values of the graph, and the outputs of custom ops as far as their attributes tell."""
        found = {}
        for node in self.graph.node:
            if node.domain == DOMAIN and node.op_type == "Route":
                shape = (None, attributes_of(node)["top_k"])
                found |= {name: Value(None, shape) for name in node.output}
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            kind = value.type.tensor_type
            dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim) if kind.HasField("shape") else None
            found[value.name] = Value(kind.elem_type, dims)
        return found | {tensor.name: Value(tensor.data_type, tuple(tensor.dims)) for tensor in self.graph.initializer}

    def experts_of(self, route: "onnx.NodeProto") -> int | None:
        """How many experts a ``Route`` chooses among: as many as its bias has values."""
        shape = self.value(route.input[1]).shape if len(route.input) > 1 else None
        return shape[0] if shape and isinstance(shape[0], int) else None

    def value(self, name: str) -> Value:
        return self.values.get(name, UNKNOWN)


Refuses = Callable[["onnx.NodeProto", Context], Refusal | None]
Rewrite = Callable[["onnx.NodeProto", Context], Replacement]


@dataclass(frozen=True)
class Lowerer:
    """One rewrite: its name in manifests, and its two halves. ``rewrite`` is called only where ``refuses`` gives None."""

    name: str
    refuses: Refuses
    rewrite: Rewrite


@dataclass(frozen=True)
class Scope:
    """Names under a node: nodes ``/layers.3/moe_ffn/experts/MatMul``, values ``layers.3/moe_ffn/experts/h``."""

    path: str

    def node(self, op_type: str) -> str:
        return f"{self.path}/{op_type}"

    def value(self, name: str) -> str:
        return f"{self.path[1:]}/{name}"


def scope_of(node: "onnx.NodeProto") -> Scope:
    """The scope that a node's replacement lives in: its path, its op's name in small letters last.

    ``/layers.3/moe_ffn/experts/Experts`` → ``/layers.3/moe_ffn/experts``; ``/layers.3/moe_ffn/Route`` →
    ``/layers.3/moe_ffn/route``; ``Route_1`` keeps its number.
    """
    parent, _, last = node.name.rpartition("/")
    op, numbered = node.op_type.lower(), last.removeprefix(node.op_type)
    if parent.rpartition("/")[2] == op and not numbered:
        return Scope(parent)
    return Scope(f"{parent}/{op}{numbered}" if last.startswith(node.op_type) else node.name or f"/{op}")


