"""Inside a segment that is apart: what its two graphs hold differently, and the first value that comes out differently.

Names are the same in every plan and no lowering changes those of stored tensors, so two graphs of one segment and one plan are
held against each other by name: tensors, constants, attributes, and then the values between, given the same inputs.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from exporter.plan.manifest import EngineRank, GraphsRank

from .chain_side import ChainSegment, ChainSide, open_piece
from .pieces import Piece
from .replay import cache_of
from .sides import Side
from .walk import Example

if TYPE_CHECKING:
    import numpy as np
    import onnx

TOLD = 4
"""Lines of one kind, at most."""
APART = 1e-3
"""Relative L2 of an inner value that is worth a line: far above rounding in float32, and kernels may round."""


def look_inside(left: Side, right: Side, example: Example, rank: int | None) -> tuple[str, ...]:
    """What differs inside, a line each; nothing where a side has no graph or the plans differ.

    :param rank: whose graphs are looked at; the first that has the segment, where none is named.
    """
    if not isinstance(left, ChainSide) or not isinstance(right, ChainSide) or left.plan.tensor != right.plan.tensor:
        return ()
    with ExitStack() as stack:
        pair = [stack.enter_context(side.open(example.segment)) for side in (left, right)]
        ranks = [_rank_of(segment, side, rank) for segment, side in zip(pair, (left, right), strict=True)]
        pieces = [segment.pieces[one] for segment, one in zip(pair, ranks, strict=True)]
        sides = list(zip(pair, (left, right), ranks, pieces, strict=True))
        held = [*_stored(sides), *_constants(pieces), *_attributes(pieces)]
        return (*held, *_first_value(sides, example))


def _rank_of(segment: ChainSegment, side: ChainSide, rank: int | None) -> int:
    """A rank of the segment's stage; by its place among the tensor ranks, where the stages differ."""
    place = 0 if rank is None else rank % side.plan.tensor
    return sorted(segment.pieces)[place]


def _stored(sides: list[Any]) -> Iterator[str]:
    """Tensors of one name, dtype and shape whose bytes differ."""
    (_, left, rank, ours), (_, right, other, theirs) = sides
    known = {tensor.name: tensor for tensor in _external(theirs.model.graph)}
    found = []
    for tensor in _external(ours.model.graph):
        twin = known.get(tensor.name)
        if twin is not None and (tensor.data_type, tensor.dims) == (twin.data_type, twin.dims):
            values = _read(tensor, left.runner(rank).folder), _read(twin, right.runner(other).folder)
            if values[0].tobytes() != values[1].tobytes():
                found.append(f"stored tensor {tensor.name} differs{_where(*values, tensor.name, left.records[rank])}")
    yield from _some(found, "stored tensors differ")


def _external(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    return (tensor for tensor in graph.initializer if tensor.data_location == tensor.EXTERNAL)


def _read(tensor: "onnx.TensorProto", folder: Any) -> "np.ndarray":
    import numpy as np
    import onnx

    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = np.memmap(folder / place["location"], np.uint8, "r", int(place.get("offset", 0)), (int(place["length"]),))
    return data.view(dtype).reshape(tuple(tensor.dims)) if dtype.itemsize else data


def _where(ours: "np.ndarray", theirs: "np.ndarray", name: str, record: EngineRank | GraphsRank) -> str:
    """How many numbers, and where along the first axis: an expert, for those of experts."""
    import numpy as np

    apart = ours != theirs
    places = np.unique(np.nonzero(apart)[0]).tolist() if ours.ndim else []
    counted = f" in {int(apart.sum()):,} of {apart.size:,} numbers"
    if not places or len(places) > TOLD:
        return counted
    experts = ".experts." in name
    return f"{counted}: {'expert' if experts else 'row'} {', '.join(str(place + (record.shard.experts.start if experts else 0)) for place in places)}"


def _constants(pieces: list[Piece]) -> Iterator[str]:
    """Small tensors that the graphs hold themselves."""
    import onnx

    ours, theirs = ({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in piece.model.graph.initializer if tensor.data_location != tensor.EXTERNAL} for piece in pieces)
    shared = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape and ours[name].tobytes() != theirs[name].tobytes()]
    yield from _some([f"constant {name} is {_short(ours[name])} and {_short(theirs[name])}" for name in shared], "constants differ")


def _short(value: "np.ndarray") -> str:
    return f"{value.reshape(-1)[0]:.6g}" if value.size == 1 else f"of {value.size} numbers"


def _attributes(pieces: list[Piece]) -> Iterator[str]:
    """Of nodes that have one name and one kind."""
    import onnx

    ours, theirs = ({(node.name, node.op_type): {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute if not one.HasField("g")} for node in piece.model.graph.node} for piece in pieces)
    found = []
    for (name, kind), mine in ours.items():
        other = theirs.get((name, kind), mine)
        found += [f"{kind} {name}: {key} is {mine.get(key)} and {other.get(key)}" for key in sorted({*mine, *other}) if mine.get(key) != other.get(key)]
    yield from _some(found, "attributes differ")


def _some(lines: list[str], what: str) -> list[str]:
    return lines if len(lines) <= TOLD else [*lines[:TOLD], f"… {len(lines)} {what} in all"]


def _first_value(sides: list[Any], example: Example) -> Iterator[str]:
    """The first value, in the order in which the left's graph computes, that both graphs name and make differently."""
    ours, theirs = sides[0][3].model.graph, sides[1][3].model.graph
    there = {name for node in theirs.node for name in node.output}
    shared = [(node, name) for node in ours.node for name in node.output if name and name in there]
    made = [_values(*side, example, [name for _, name in shared]) for side in sides]
    for node, name in shared:
        distance = _distance(made[0].get(name), made[1].get(name))
        if distance is not None and not distance <= APART:
            yield f"first value apart inside: {name}, of {node.op_type} {node.name}: relative L2 {distance:.3g}"
            return
    yield f"no inner value that both graphs name is apart by more than {APART:g}"


def _values(segment: ChainSegment, side: ChainSide, rank: int, piece: Piece, example: Example, names: list[str]) -> "dict[str, np.ndarray]":
    """Inner values of one graph, given the example's inputs."""
    import onnx

    known = {value.name for value in piece.model.graph.output}
    model = onnx.ModelProto()
    model.CopyFrom(piece.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = open_piece(Piece(model, piece.signature, piece.after, piece.choice), side.runner(rank)).session
    feeds = segment.feeds(rank, example.given, cache_of(segment, rank, example))
    wanted = [one.name for one in session.get_outputs() if one.name in set(names)]
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))


def _distance(one: "np.ndarray | None", other: "np.ndarray | None") -> float | None:
    """Relative L2; None of what is no float, or not of one shape."""
    import numpy as np

    if one is None or other is None or one.shape != other.shape or one.dtype.kind != "f" or other.dtype.kind != "f":
        return None
    left, right = one.astype(np.float64), other.astype(np.float64)
    if np.array_equal(left, right):
        return 0.0
    kept = np.isfinite(left) | np.isfinite(right)  # masked scores are minus infinity on both sides
    return float(np.linalg.norm(left[kept] - right[kept]) / max(np.linalg.norm(left[kept]), 1e-30))
