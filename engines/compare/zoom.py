"""Inside a segment that is apart: what its two graphs hold differently, and the first value that comes out differently.

Names are the same in every plan and no lowering changes those of stored tensors, so two graphs of one segment and one plan are
held against each other by name: tensors, constants, attributes, and then the values between, given the same inputs.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Reference
from exporter.plan.manifest import EngineRank, GraphsRank

from .chain_side import ChainSegment, ChainSide, open_piece
from .pieces import Piece, external
from .replay import cache_of
from .sides import Side
from .walk import Example

if TYPE_CHECKING:
    import numpy as np
    import onnx

TOLD = 6
"""Differences that are told, at most; and rows of one tensor."""
PLAN = "nobody sees into a plan: what it should be is held in its graphs, which ort runs (compare those with the left)"
APART = 1e-3
"""Relative L2 of an inner value that is worth a line: far above rounding in float32, and kernels may round."""


def look_inside(left: Side, right: Side, example: Example, rank: int | None) -> tuple[str, ...]:
    """What differs inside, a line each; nothing where a side has no graph or the plans differ.

    :param rank: whose inner values are looked at; the first of the stage, where none is named.
    """
    if not isinstance(left, ChainSide) or not isinstance(right, ChainSide) or left.plan.tensor != right.plan.tensor:
        return ()
    with ExitStack() as stack:
        segments = [stack.enter_context(side.open(example.segment)) for side in (left, right)]
        if not (left.readable and right.readable):
            return (PLAN,)
        pairs = [_pair(segments, (left, right), place) for place in range(left.plan.tensor)]
        lines: dict[str, list[int]] = {}
        for pair in pairs:
            for line in (*_schedule(pair), *_stored(pair), *_constants(pair), *_attributes(pair)):
                lines.setdefault(line, []).append(pair[0].rank)
        held = [line + _on(ranks, len(pairs)) for line, ranks in lines.items()]
        chosen = pairs[0 if rank is None else rank % left.plan.tensor]
        return (*_some(held, "differences"), *_first_value(chosen, example))


@dataclass(frozen=True)
class Half:
    """One side of a segment, of one rank."""

    segment: ChainSegment
    side: ChainSide
    rank: int

    @property
    def piece(self) -> Piece:
        return self.segment.pieces[self.rank]


def _pair(segments: list[ChainSegment], sides: tuple[ChainSide, ChainSide], place: int) -> tuple[Half, Half]:
    """By the place among the tensor ranks: stages may differ."""
    left, right = (Half(segment, side, sorted(segment.pieces)[place]) for segment, side in zip(segments, sides, strict=True))
    return left, right


def _on(ranks: list[int], count: int) -> str:
    """Whose a line is, where there are several."""
    if count == 1:
        return ""
    return " (all ranks)" if len(ranks) == count else f" (rank {', '.join(map(str, ranks))})"


def _schedule(pair: tuple[Half, Half]) -> Iterator[str]:
    """What is done with the parts before the next segment."""
    ours, theirs = (", ".join(f"{step.kind} of {step.value} into {step.result}" for step in half.piece.after) or "nothing" for half in pair)
    if ours != theirs:
        yield f"behind the segment the left does {ours}; the right {theirs}"


def _stored(pair: tuple[Half, Half]) -> Iterator[str]:
    """Tensors of one name, dtype and shape whose bytes differ."""
    left, right = pair
    known = {tensor.name: tensor for tensor in external(right.piece.model.graph)}
    for tensor in external(left.piece.model.graph):
        twin = known.get(tensor.name)
        if twin is not None and (tensor.data_type, tensor.dims) == (twin.data_type, twin.dims):
            values = _read(tensor, left.side.runner(left.rank).folder), _read(twin, right.side.runner(right.rank).folder)
            if values[0].tobytes() != values[1].tobytes():
                yield f"stored tensor {tensor.name} differs{_where(*values, tensor.name, left.side.records[left.rank])}"


def _read(tensor: "onnx.TensorProto", folder: Any) -> "np.ndarray":
    import numpy as np
    import onnx

    place = Reference.read(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = np.memmap(folder / place.location, np.uint8, "r", place.offset, (place.bytes,))
    return data.view(dtype).reshape(tuple(tensor.dims)) if dtype.itemsize else data


def _where(ours: "np.ndarray", theirs: "np.ndarray", name: str, record: EngineRank | GraphsRank) -> str:
    """How many numbers, and where along the first axis: an expert, for those of experts."""
    import numpy as np

    apart = ours != theirs
    places = np.unique(np.nonzero(apart)[0]).tolist() if ours.ndim else []
    counted = f" in {int(apart.sum()):,} of {apart.size:,} numbers"
    if not places or len(places) > TOLD:
        return counted
    exchanged = len(places) > 1 and sorted(ours[place].tobytes() for place in places) == sorted(theirs[place].tobytes() for place in places)
    what, first = ("expert", record.shard.experts.start) if ".experts." in name else ("row", 0)
    named = f"{what}{'s' if len(places) > 1 else ''} {', '.join(str(place + first) for place in places)}{' of the model' if first or what == 'expert' else ''}"
    return f"{counted}: {named}{', exchanged' if exchanged else ''}"


def _constants(pair: tuple[Half, Half]) -> Iterator[str]:
    """Small tensors that the graphs hold themselves."""
    import onnx

    ours, theirs = ({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in half.piece.model.graph.initializer if tensor.data_location != tensor.EXTERNAL} for half in pair)
    for name in ours:
        if name in theirs and ours[name].shape == theirs[name].shape and ours[name].tobytes() != theirs[name].tobytes():
            yield f"constant {name} is {_short(ours[name])} on the left, {_short(theirs[name])} on the right"


def _short(value: "np.ndarray") -> str:
    return f"{value.reshape(-1)[0]:.6g}" if value.size == 1 else f"of {value.size} numbers"


def _attributes(pair: tuple[Half, Half]) -> Iterator[str]:
    """Of nodes that have one name and one kind."""
    import onnx

    ours, theirs = ({(node.name, node.op_type): {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute if not one.HasField("g")} for node in half.piece.model.graph.node} for half in pair)
    for (name, kind), mine in ours.items():
        other = theirs.get((name, kind), mine)
        for key in sorted({*mine, *other}):
            if mine.get(key) != other.get(key):
                yield f"{kind} {name}: {key} is {mine.get(key)} on the left, {other.get(key)} on the right"


def _some(lines: list[str], what: str) -> list[str]:
    return lines if len(lines) <= TOLD else [*lines[:TOLD], f"… {len(lines)} {what} in all"]


def _first_value(pair: tuple[Half, Half], example: Example) -> Iterator[str]:
    """The first value, in the order in which the left's graph computes, that both graphs name and make differently."""
    ours, theirs = (half.piece.model.graph for half in pair)
    there = {name for node in theirs.node for name in node.output}
    shared = [(node, name) for node in ours.node for name in node.output if name and name in there]
    made = [_values(half, example, [name for _, name in shared]) for half in pair]
    for node, name in shared:
        distance = _distance(made[0].get(name), made[1].get(name))
        if distance is not None and not distance <= APART:
            yield f"first value apart inside rank {pair[0].rank}: {name}, made by {node.op_type}: relative L2 {distance:.3g}"
            return
    yield f"inside rank {pair[0].rank}, given the same, every value that both graphs name is the same to {APART:g}"


def _values(half: Half, example: Example, names: list[str]) -> "dict[str, np.ndarray]":
    """Inner values of one graph, given the example's inputs."""
    import onnx

    piece, segment = half.piece, half.segment
    known = {value.name for value in piece.model.graph.output}
    model = onnx.ModelProto()
    model.CopyFrom(piece.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = open_piece(Piece(model, piece.signature, piece.after, piece.choice), half.side.runner(half.rank)).session
    feeds = segment.feeds(half.rank, example.given, cache_of(segment, half.rank, example))
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
