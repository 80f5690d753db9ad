"""Templates become a rank's graphs: named, bound to the weights file, cut at the collectives or joined over them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ..checkpoint.layout import Layout, Placed
from ..models import FAMILIES
from ..models.deepseek import Segment
from ..ops import DOMAIN, OPSET, VERSION, bodies
from ..plan.config import ModelConfig
from ..plan.parallel import Plan, Shard
from ..plan.schedule import AllGather, AllReduce, Launch, Receive, Send, Step
from ..plan.signature import Signature, State, Tensor
from ..trace import WEIGHTS, template_key, trace

if TYPE_CHECKING:
    import onnx

IR_VERSION = 11
WHOLE = "rank"
"""Launch name of the graph that holds a whole rank."""


@dataclass(frozen=True)
class Piece:
    """One segment of one rank: its graph, what it is called with, and the collective behind it."""

    name: str
    graph: "onnx.GraphProto"
    signature: Signature
    after: AllReduce | AllGather | None


@dataclass(frozen=True)
class RankGraphs:
    """Both assemblies of one rank, before they are written."""

    pieces: tuple[Piece, ...]
    receives: Receive | None
    sends: Send | None
    whole: "onnx.GraphProto"
    whole_signature: Signature

    @property
    def segment_steps(self) -> tuple[Step, ...]:
        body = [step for piece in self.pieces for step in (Launch(piece.name), piece.after) if step]
        return tuple(step for step in (self.receives, *body, self.sends) if step)

    @property
    def whole_steps(self) -> tuple[Step, ...]:
        return tuple(step for step in (self.receives, Launch(WHOLE), self.sends) if step)


@dataclass
class Stream:
    """The residual stream between segments: what was read last, and the update that waits to be added."""

    hidden: str
    update: str | None

    @property
    def names(self) -> dict[str, str]:
        return {"hidden": self.hidden} | ({"update": self.update} if self.update else {})


@dataclass(frozen=True)
class RankJob:
    """All that one rank's graphs depend on."""

    config: ModelConfig
    plan: Plan
    shard: Shard
    precision: str
    attention: str
    layout: Layout
    """The rank's weights file, written or not."""

    @cached_property
    def places(self) -> dict[str, Placed]:
        """Weight name → its place in the file."""
        return {placed.name: placed for placed in self.layout.tensors}

    def template(self, kind: str) -> "onnx.ModelProto":
        return trace(template_key(kind, self.config, self.plan.tensor, self.precision, self.attention))


def assemble(job: RankJob) -> RankGraphs:
    """Both assemblies of a rank."""
    listed = FAMILIES[job.config.family].segments(job.config, job.shard)
    stream = Stream("embed.hidden", None) if job.shard.first else _stream_before(job)
    receives = None if job.shard.first else Receive(tuple(stream.names.values()))
    pieces = tuple(_piece(job, segment, stream) for segment in listed)
    sends = None if job.shard.last else Send(tuple(stream.names.values()))
    whole, signature = _join(pieces, sends, job.plan.tensor)
    return RankGraphs(pieces, receives, sends, whole, signature)


def _stream_before(job: RankJob) -> Stream:
    """What the stage before hands over: the names that its last segment gave them."""
    last = job.shard.layers.start - 1
    name = f"layers.{last}.{'dense_ffn' if job.config.is_dense(last) else 'moe_ffn'}"
    return Stream(f"{name}.hidden", f"{name}.update")


def _piece(job: RankJob, segment: Segment, stream: Stream) -> Piece:
    """Make one segment's graph and move the stream past it."""
    inputs, outputs, after = _bindings(job, segment, stream)
    graph, signature = _instantiate(job, segment, inputs, outputs)
    if segment.kind == "embed":
        stream.hidden, stream.update = "embed.hidden", None
    elif segment.kind != "head":
        stream.hidden, stream.update = outputs.get("hidden.out", stream.hidden), f"{segment.name}.update"
    return Piece(segment.name, graph, signature, after)


def _bindings(job: RankJob, segment: Segment, stream: Stream) -> tuple[dict[str, str], dict[str, str], AllReduce | AllGather | None]:
    """Local → global names of a segment's inputs and outputs, and the collective that completes its output."""
    name, alone = segment.name, job.plan.tensor == 1
    partial = f"{name}.partial"
    result = {"embed": "embed.hidden", "head": "logits"}.get(segment.kind, f"{name}.update")
    inputs = {} if segment.kind == "embed" else stream.names
    outputs = {"partial": result if alone else partial}
    if segment.kind in ("attention", "dense_ffn", "moe_ffn") and stream.update:
        outputs["hidden.out"] = f"{name}.hidden"
    if segment.kind == "attention":
        inputs, outputs = inputs | {"cache": f"{name}.cache"}, outputs | {"cache.out": f"{name}.cache.out"}
    collective = AllGather if segment.kind == "head" else AllReduce
    return inputs, outputs, None if alone else collective(partial, result)


def _instantiate(job: RankJob, segment: Segment, inputs: dict[str, str], outputs: dict[str, str]) -> tuple["onnx.GraphProto", Signature]:
    """The template of a segment's kind under global names, its weights at their places."""
    import onnx

    template = job.template(segment.kind).graph
    scope = _scope(segment.name)
    names = {"": ""} | inputs | outputs
    graph = onnx.GraphProto(name=segment.name)
    for initializer in template.initializer:
        graph.initializer.append(_initializer(job, segment, scope, initializer, names))
    nodes = template.node if "update" in inputs or segment.kind == "embed" else _without_update(template.node, names)
    graph.node.extend(_rename(node, scope, names, job) for node in nodes)
    signature = _signature(template, names, {"cache"})
    _declare(graph, signature)
    return graph, signature


def _scope(name: str) -> str:
    """``layers.3.attention`` → ``layers.3/attention``: how nodes and inner values of a segment begin."""
    head, _, kind = name.rpartition(".")
    return f"{head}/{kind}" if head else kind


def _initializer(job: RankJob, segment: Segment, scope: str, template: "onnx.TensorProto", names: dict[str, str]) -> "onnx.TensorProto":
    import onnx

    local = template.name
    if local == "first_row":
        names[local] = f"{scope}/{local}"
        return onnx.helper.make_tensor(names[local], onnx.TensorProto.INT64, [], [job.shard.vocab.start])
    made = onnx.TensorProto()
    made.CopyFrom(template)
    if template.data_location != onnx.TensorProto.EXTERNAL:
        made.name = names[local] = f"{scope}/{local}"
        return made
    made.name = names[local] = local if local.startswith("rope.") else f"{segment.name}.{local}"
    job.places[made.name].refer(made, WEIGHTS)
    return made


def _without_update(nodes: Iterable["onnx.NodeProto"], names: dict[str, str]) -> Iterator["onnx.NodeProto"]:
    """The segment after ``embed`` has no update to add: its residual sum is what it was given.

    Shapes may still be read from the update; they are those of ``hidden``.
    """
    names["update"] = names["hidden"]
    for node in nodes:
        if node.op_type == "Add" and set(node.input) == {"hidden", "update"}:
            names[node.output[0]] = names["hidden"]
        else:
            yield node


def _rename(node: "onnx.NodeProto", scope: str, names: dict[str, str], job: RankJob) -> "onnx.NodeProto":
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.name = f"/{scope}{node.name}"
    # Nodes come in topological order, so whatever a node reads has been named by then; graph inputs keep their names.
    made.input[:] = [names.setdefault(name, name) for name in node.input]
    made.output[:] = [names.setdefault(name, f"{scope}/{name}") for name in node.output]
    for attribute in made.attribute:
        if attribute.name == "first_expert":
            attribute.i = job.shard.experts.start
    return made


def _signature(template: "onnx.GraphProto", names: dict[str, str], states: set[str]) -> Signature:
    """:param names: local → global names; inputs and outputs that are not among them do not exist in this instance."""
    inputs = {names[value.name]: _tensor(value, names[value.name]) for value in template.input if value.name in names}
    outputs = [_tensor(value, names[value.name]) for value in template.output if names[value.name] != names.get("hidden")]
    kept = tuple(State(names[state], names[f"{state}.out"]) for state in states if state in names)
    return Signature(tuple(inputs.values()), tuple(outputs), kept)


def _tensor(value: "onnx.ValueInfoProto", name: str) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    dtype = next(dtype for dtype, number in _element_types().items() if number == kind.elem_type)
    return Tensor(name, dtype, shape)


@cache
def _element_types() -> dict[str, int]:
    """A signature's dtypes → ONNX's numbers for them."""
    from onnx import TensorProto

    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "int64": TensorProto.INT64}


def _declare(graph: "onnx.GraphProto", signature: Signature) -> None:
    import onnx

    for tensors, place in ((signature.inputs, graph.input), (signature.outputs, graph.output)):
        place.extend(onnx.helper.make_tensor_value_info(tensor.name, _element_types()[tensor.dtype], tensor.shape) for tensor in tensors)


def _join(pieces: tuple[Piece, ...], sends: Send | None, ranks: int) -> tuple["onnx.GraphProto", Signature]:
    """One graph for all pieces of a rank, with the collectives between them as nodes."""
    import onnx

    graph, seen = onnx.GraphProto(name=WHOLE), set()
    for piece in pieces:
        graph.node.extend(piece.graph.node)
        graph.initializer.extend(tensor for tensor in piece.graph.initializer if not (tensor.name in seen or seen.add(tensor.name)))
        if piece.after:
            graph.node.append(_collective(piece, ranks))
    signature = _join_signatures(pieces, sends, ranks)
    _declare(graph, signature)
    _declare_between(graph, pieces, ranks)
    return graph, signature


def _declare_between(graph: "onnx.GraphProto", pieces: tuple[Piece, ...], ranks: int) -> None:
    """What one piece hands to the next, with its shape: a reader of the graph need not infer it through custom ops."""
    import onnx

    known = {value.name for value in (*graph.input, *graph.output)}
    for tensor in (tensor for piece in pieces for tensor in _results(piece, ranks) if tensor.name not in known):
        graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, _element_types()[tensor.dtype], tensor.shape))


def _collective(piece: Piece, ranks: int) -> "onnx.NodeProto":
    import onnx

    op, extra = ("AllGather", {"axis": -1}) if isinstance(piece.after, AllGather) else ("AllReduce", {})
    name = f"/{_scope(piece.name)}/{op}"
    return onnx.helper.make_node(op, [piece.after.value], [piece.after.result], name=name, domain=DOMAIN, ranks=ranks, **extra)


def _join_signatures(pieces: tuple[Piece, ...], sends: Send | None, ranks: int) -> Signature:
    """What no piece makes comes in; caches, logits and what is sent on go out."""
    made = {tensor.name for piece in pieces for tensor in piece.signature.outputs} | {piece.after.result for piece in pieces if piece.after}
    states = tuple(state for piece in pieces for state in piece.signature.states)
    wanted = {state.output for state in states} | {"logits"} | set(sends.values if sends else ())
    inputs = {tensor.name: tensor for piece in pieces for tensor in piece.signature.inputs if tensor.name not in made}
    outputs = {tensor.name: tensor for piece in pieces for tensor in _results(piece, ranks) if tensor.name in wanted}
    return Signature(tuple(inputs.values()), tuple(outputs.values()), states)


def _results(piece: Piece, ranks: int) -> Iterator[Tensor]:
    for tensor in piece.signature.outputs:
        if piece.after is None or tensor.name != piece.after.value:
            yield tensor
        else:
            whole = tensor.shape[-1] * (ranks if isinstance(piece.after, AllGather) else 1)
            yield replace(tensor, name=piece.after.result, shape=(*tensor.shape[:-1], whole))


def finish(graph: "onnx.GraphProto", metadata: dict[str, str]) -> "onnx.ModelProto":
    """A model that stands alone: opsets, the bodies of its custom ops, and where it came from."""
    import onnx

    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="moetrt", graph=graph)
    model.opset_import.add(domain="", version=OPSET)
    functions = bodies(graph.node)
    if functions:
        model.opset_import.add(domain=DOMAIN, version=VERSION)
        model.functions.extend(functions)
    onnx.helper.set_model_props(model, metadata)
    return model
