"""Two folders of engines held against each other, and each against its plan, without running either.

What a GPU would show by other numbers shows here by what engines are made of: a tensor that is missing or of another shape, a
product that fell back to float, a plan that holds fewer bytes than its weights have.
"""

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.models import FAMILIES
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.parallel import Range, shard
from exporter.plan.schedule import AllGather, AllReduce

from ..backends.emitted import computing, int8_everywhere
from ..backends.parsed import INPUT_SCALE
from . import build_sides
from .build_sides import (
    PLANS,
    Promise,
    RankSide,
    Record,
    Side,
    fits,
    held_bytes,
    promised,
    promised_bytes,
    segment_of,
)

WHOLE_RANK = "rank"
"""Launch name of the graph that holds a whole rank."""
FLOAT, INT8, ABSENT = "float", "int8", "absent"


@dataclass(frozen=True)
class Band:
    """Bytes of constants that a plan may hold, over those of the weights that it was built from."""

    low: float
    high: float
    because: str


WHOLE = Band(0.99, 1.03, "sound plans held 1.0000 to 1.0006 of a rank's weights: constants of the graph come on top, equal ones are stored once")
SEGMENT = Band(0.95, 1.08, "sound plans held 0.989 to 1.008 of a segment's weights: a norm or a scale may be folded into the layer of a neighbour")


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be."""

    check: str
    """``manifest``, ``tensors``, ``products``, ``collectives`` or ``bytes``."""
    rank: int | None
    segment: str | None
    side: str | None
    """``left``, ``right``, or None for what the two disagree on."""
    message: str


@dataclass(frozen=True)
class RankSummary:
    """What one rank of one side is made of."""

    side: str
    rank: int
    tensors: int
    became: dict[str, int]
    """What products by stored matrices are computed as → how many: ``int8``, ``fused`` (a quantised matrix, dequantised within), ``float``, ``absent``."""
    weight_bytes: int
    held_bytes: int | None
    """Constants that the plan holds; None where weights are files."""
    engine_bytes: int


@dataclass(frozen=True)
class BuildComparison:
    """What ``compare --build-only`` finds."""

    verdict: str
    """``same`` or ``differ``."""
    left: str
    right: str
    faults: tuple[Fault, ...]
    ranks: tuple[RankSummary, ...]
    notes: tuple[str, ...]
    """What was not compared, and why."""

    def summary(self) -> str:
        lines = [f"left   {self.left}", f"right  {self.right}", "", f"{'':6}{'rank':>4} {'tensors':>7} {'int8':>5} {'fused':>5} {'float':>5} {'MB weights':>10} {'held':>10} {'ratio':>6} {'files':>10}"]
        lines += [_line(rank) for rank in self.ranks]
        lines += [textwrap.fill(f"Note: {note}", 80) for note in self.notes]
        lines += [text for fault in self.faults for text in _fault_lines(fault)]
        return "\n".join([*lines, self.verdict + (f": {len(self.faults)} found, nothing was run" if self.faults else ", as far as can be told without running")])


def _line(rank: RankSummary) -> str:
    held = f"{rank.held_bytes / 1e6:10.3f} {rank.held_bytes / max(rank.weight_bytes, 1):6.4f}" if rank.held_bytes is not None else f"{'':17}"
    kinds = " ".join(f"{rank.became.get(kind, 0):5}" for kind in (INT8, "fused", FLOAT))
    return f"{rank.side:6}{rank.rank:>4} {rank.tensors:>7} {kinds} {rank.weight_bytes / 1e6:10.3f} {held} {rank.engine_bytes / 1e6:10.3f}"


def _fault_lines(fault: Fault) -> Iterator[str]:
    where = [fault.check, *([f"rank {fault.rank}"] if fault.rank is not None else []), *([fault.segment] if fault.segment else []), *([fault.side] if fault.side else [])]
    yield ", ".join(where)
    yield textwrap.fill(fault.message, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def compare_builds(left: Path, right: Path) -> BuildComparison:
    """Folders of engines of any backends, or of graphs; with TensorRT on one side at least there is a compiler to check.

    :raises LoadError: a folder is none of ours, or was built before builds recorded what they are made of.
    """
    sides = {"left": build_sides.read_side(left), "right": build_sides.read_side(right)}
    found = {name: {rank: build_sides.read_rank(side, rank) for rank in side.ranks} for name, side in sides.items()}
    faults = [fault for name, side in sides.items() for fault in _own_faults(name, side)]
    faults += _between(sides["left"], sides["right"])
    faults += [fault for name, side in sides.items() for rank, held in found[name].items() for fault in _rank_faults(name, side.ranks[rank], held)]
    if sides["left"].first.plan == sides["right"].first.plan:
        both = sorted(set(found["left"]) & set(found["right"]))
        faults += [fault for rank in both for fault in _pair_faults(rank, found["left"][rank], found["right"][rank], _alike(sides, rank))]
    told = [_summary(name, rank, held, side.ranks[rank]) for name, side in sides.items() for rank, held in sorted(found[name].items())]
    labels = [f"{side.folder} ({side.backend})" for side in sides.values()]
    return BuildComparison("differ" if faults else "same", *labels, tuple(faults), tuple(told), tuple(_notes(sides)))


def _own_faults(name: str, side: Side) -> Iterator[Fault]:
    """A set must be whole, its ranks made for each other, its files as stamped, its experts each on one rank of a stage."""
    try:
        records.require_set(side.ranks, side.folder)
        for rank, record in side.ranks.items():
            records.check_files(side.folder / records.rank_folder(rank), record.files)
    except LoadError as cause:
        yield Fault("manifest", None, None, name, cause.message)
    for rank, record in side.ranks.items():
        if record.shard != shard(record.config, record.plan, rank):
            yield Fault("manifest", rank, None, name, f"the manifest says {_owned(record)}; the plan gives this rank something else")
    for stage in range(side.first.plan.pipeline):
        ranges = sorted((record.shard.experts for record in side.ranks.values() if record.shard.stage == stage), key=lambda one: one.start)
        if ranges and not _tile(ranges, side.first.config.experts):
            listed = ", ".join(f"{one.start}-{one.stop - 1}" for one in ranges)
            yield Fault("manifest", None, None, name, f"the ranks of stage {stage} hold experts {listed}: not each expert once")


def _owned(record: Record) -> str:
    part = record.shard
    return f"layers {part.layers.start}-{part.layers.stop - 1}, experts {part.experts.start}-{part.experts.stop - 1}"


def _tile(ranges: list[Range], count: int) -> bool:
    edges = [0, *(edge for one in ranges for edge in (one.start, one.stop)), count]
    return all(before == after for before, after in zip(edges[::2], edges[1::2], strict=True))


def _between(left: Side, right: Side) -> Iterator[Fault]:
    for what, mine, theirs in _identity(left.first, right.first):
        if mine != theirs:
            yield Fault("manifest", None, None, None, f"the {what} differs: {records.short(mine)} on the left, {records.short(theirs)} on the right")


def _identity(one: Record, other: Record) -> Iterator[tuple[str, Any, Any]]:
    yield "checkpoint", one.source.fingerprint, other.source.fingerprint
    yield "configuration", files.digest(one.config), files.digest(other.config)
    yield "plan", f"tensor {one.plan.tensor}, pipeline {one.plan.pipeline}", f"tensor {other.plan.tensor}, pipeline {other.plan.pipeline}"
    yield "attention form", one.attention, other.attention
    for what in ("scheme", "table", "smooth", "float_segments"):
        yield f"quantisation's {what.replace('_', ' ')}", getattr(one.quantization, what, None), getattr(other.quantization, what, None)
    limits = [getattr(record, "max_context", None) for record in (one, other)]
    if None not in limits:
        yield "--max-context", *limits


def _notes(sides: dict[str, Side]) -> Iterator[str]:
    first = {name: side.first for name, side in sides.items()}
    if len({record.plan for record in first.values()}) > 1:
        yield "the plans differ: each side was held against its own plan alone."
    if not any(side.backend in PLANS for side in sides.values()):
        yield "neither side is of TensorRT: there is no compiler's list to read."
    for name, record in first.items():
        if "fast" in getattr(record, "options", {}):
            yield f"the {name} was built with --fast: its products are not as promised, and are not judged."
    precisions = {record.precision for record in first.values()}
    if len(precisions) > 1:
        yield f"precisions differ ({' and '.join(sorted(precisions))}): contents of tensors are not compared."
    elif len({record.graphs for record in first.values() if hasattr(record, "graphs")}) > 1:
        yield "the two were not built from the same folder of graphs."


def _alike(sides: dict[str, Side], rank: int) -> bool:
    """Whether equal tensors must have equal bytes."""
    return len({side.ranks[rank].precision for side in sides.values()}) == 1


def _rank_faults(name: str, record: Record, held: RankSide) -> Iterator[Fault]:
    rank, promises = record.rank, promised(record)
    for segment, message in _tensor_faults(held, promises):
        yield Fault("tensors", rank, segment, name, message)
    if "fast" not in getattr(record, "options", {}):
        for segment, message in _product_faults(record, held):
            yield Fault("products", rank, segment, name, message)
    for segment, message in _schedule_faults(record):
        yield Fault("collectives", rank, segment, name, message)
    if held.layers is not None:
        for segment, message in _collective_faults(record, held):
            yield Fault("collectives", rank, segment, name, message)
        for segment, message in _byte_faults(held, promises):
            yield Fault("bytes", rank, segment, name, message)


def _tensor_faults(held: RankSide, promises: dict[str, Promise]) -> Iterator[tuple[str, str]]:
    segments: dict[str, list[str]] = {}
    for tensor in promises:
        segments.setdefault(segment_of(tensor), []).append(tensor)
    for segment, tensors in segments.items():
        missing = [tensor for tensor in tensors if tensor not in held.weights]
        if missing == tensors:
            yield segment, f"the whole segment is missing: {len(tensors)} tensors"
            continue
        yield from ((segment, f"{tensor} is missing") for tensor in missing)
        for tensor in tensors:
            weight, promise = held.weights.get(tensor), promises[tensor]
            if weight and not fits(weight, promise):
                wanted = " or ".join(promise.dtypes) + (f" {_dims(promise.shape)}" if promise.shape else "")
                yield segment, f"{tensor} is {weight.dtype} {_dims(weight.shape)}, the plan says {wanted}"
    for tensor in held.weights.keys() - promises.keys():
        if not tensor.endswith(INPUT_SCALE):
            yield segment_of(tensor), f"{tensor} is not of this rank"


def _dims(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _product_faults(record: Record, held: RankSide) -> Iterator[tuple[str, str]]:
    """What the manifest promises of each matrix, against the products of the graph, and those against the compiler's list."""
    modes = record.quantization.weights if record.quantization else {}
    multiplied = {product.weight for product in held.products}
    for weight in modes:
        if weight in held.weights and weight not in multiplied:
            yield segment_of(weight), f"{weight} is multiplied by nothing"
    if held.layers is not None and held.products and not any(layer.nodes for layer in held.layers):
        yield "all", "the compiler's list names no node of the graph: what products became cannot be told"
        return
    for product in held.products:
        wanted = FLOAT if modes.get(product.weight, FLOAT) == FLOAT else INT8
        became = product.input if held.layers is None else _became(held, product.node)
        if product.input != wanted:
            yield segment_of(product.weight), f"{product.weight} is multiplied by {product.input} inputs, {wanted} is promised"
        elif became == ABSENT or (became == INT8) != (wanted == INT8):
            made = "; ".join(f"{layer.type} of {', '.join(layer.operands)}" for layer in computing(held.layers, product.node)) or "nothing"
            yield segment_of(product.weight), f"{product.weight}: {wanted} is promised, the compiler made {made}"


def _became(held: RankSide, node: str) -> str:
    if int8_everywhere(held.layers, node):
        return INT8
    operands = [operand for layer in computing(held.layers, node) for operand in layer.operands]
    return "fused" if any(operand.startswith(("Int8", "Int4")) for operand in operands) else FLOAT if operands else ABSENT


def _schedule_faults(record: Record) -> Iterator[tuple[str, str]]:
    """Where graphs are cut at the collectives: one behind each segment."""
    assembly = records.segments_of(record)
    if record.plan.tensor == 1 or WHOLE_RANK in assembly.graphs:
        return
    joined = {step.value: step for step in assembly.steps if isinstance(step, AllReduce | AllGather)}
    for segment in FAMILIES[record.config.family].segments(record.config, record.shard):
        wanted, step = AllGather if segment.kind == "head" else AllReduce, joined.get(f"{segment.name}.partial")
        if segment.name not in assembly.graphs:
            yield segment.name, "the schedule has no such segment"
        elif not isinstance(step, wanted):
            yield segment.name, f"no {'gather' if wanted is AllGather else 'sum'} over the tensor ranks stands behind it"


def _collective_faults(record: Record, held: RankSide) -> Iterator[tuple[str, str]]:
    if record.plan.tensor == 1 or WHOLE_RANK not in records.segments_of(record).graphs:
        return
    programs: dict[int, set[str]] = {}
    for layer in held.layers:
        programs.setdefault(layer.program, set()).update(layer.nodes)
    for segment in FAMILIES[record.config.family].segments(record.config, record.shard):
        kind = "allgather" if segment.kind == "head" else "allreduce"
        parent, _, last = segment.name.rpartition(".")
        node = f"/{parent}/{last}/{kind}/DistCollective" if parent else f"/{last}/{kind}/DistCollective"
        if not all(node in nodes for nodes in programs.values()):
            yield segment.name, f"no {kind} stands behind it"


def _byte_faults(held: RankSide, promises: dict[str, Promise]) -> Iterator[tuple[str, str]]:
    wanted, found = promised_bytes(held, promises), held_bytes(held)
    whole, total = sum(wanted.values()), sum(found.values())
    if held.engine_bytes < whole:
        yield "all", f"the plan has {held.engine_bytes} bytes, its weights {whole}"
    if not WHOLE.low <= total / whole <= WHOLE.high:
        yield "all", f"the plan holds {total} bytes of constants, its weights have {whole}: {total / whole:.3f}, beyond {WHOLE.low} to {WHOLE.high}"
    for segment, size in wanted.items():
        share = found.get(segment, 0) / max(size, 1)
        if not SEGMENT.low <= share <= SEGMENT.high:
            yield segment, f"the plan holds {found.get(segment, 0)} bytes of constants, its weights have {size}: {share:.3f}, beyond {SEGMENT.low} to {SEGMENT.high}"


def _pair_faults(rank: int, left: RankSide, right: RankSide, alike: bool) -> Iterator[Fault]:
    for name in sorted(left.weights.keys() ^ right.weights.keys()):
        yield Fault("tensors", rank, segment_of(name), None, f"{name} is on the {'left' if name in left.weights else 'right'} alone")
    for name in sorted(left.weights.keys() & right.weights.keys()):
        one, other = left.weights[name], right.weights[name]
        if one.shape != other.shape or (alike and one.dtype != other.dtype):
            yield Fault("tensors", rank, segment_of(name), None, f"{name} is {one.dtype} {_dims(one.shape)} on the left, {other.dtype} {_dims(other.shape)} on the right")
        elif alike and one.sample != other.sample:
            yield Fault("tensors", rank, segment_of(name), None, f"{name} has other contents on the right")
    used = [{product.weight for product in side.products} for side in (left, right)]
    for name in sorted(used[0] ^ used[1]):
        yield Fault("products", rank, segment_of(name), None, f"{name} is multiplied on the {'left' if name in used[0] else 'right'} alone")


def _summary(name: str, rank: int, held: RankSide, record: Record) -> RankSummary:
    promises = promised(record)
    kinds = (product.input if held.layers is None else _became(held, product.node) for product in held.products)
    return RankSummary(
        side=name,
        rank=rank,
        tensors=len(held.weights),
        became=dict(sorted(Counter(kinds).items())),
        weight_bytes=sum(promised_bytes(held, promises).values()),
        held_bytes=None if held.layers is None else sum(held_bytes(held).values()),
        engine_bytes=held.engine_bytes,
    )
