"""The first segment apart as files that stand alone: its graphs, what went in, what came out, and the lines that run it again.

Polygraphy debugs one graph well, and cannot walk a chain; so what it gets is the segment, with the inputs of the step that was
furthest apart.
"""

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Reference
from exporter.errors import LoadError
from exporter.lowering import lower
from exporter.plan import files
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import EngineRank, GraphsRank

from .chain_side import ChainSegment, ChainSide
from .pieces import Piece, external
from .sides import Given, Side
from .tolerances import Tolerance
from .verdict import END_TO_END
from .walk import Example

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from .compare import Evidence

ALIGNMENT = 4096
"""External data begins at a multiple of this."""
COPIED = 16 << 20
"""Bytes of weights that are copied at once."""
NOTHING = Capabilities("any", frozenset(), frozenset({"fp32", "fp16", "bf16"}), collectives_inside=False, needs_gpu_to_run=False, extra="ort")
"""What every ONNX backend has: the standard ops."""
POLYGRAPHY = "pip install 'moetrt[debug]'"


@dataclass(frozen=True)
class Replay:
    """``replay.json``."""

    segment: str
    rank: int
    """Whose graphs these are."""
    prompt: int
    start: int
    """Position of the step's first token."""
    tokens: int
    tensor: str
    distance: float
    """Relative L2 of the token that was furthest apart."""
    left: str
    right: str
    commands: tuple[str, ...]
    """Run them in this folder: the first says that a side does again what it did, the others where the two part."""
    notes: tuple[str, ...] = ()
    kind: str = "replay"
    version: int = 1

    def told(self, folder: Path) -> str:
        return "\n".join([f"replay: {folder}: {self.segment} of rank {self.rank}; in that folder run", *(f"  {line}" for line in self.commands), *(f"note: {note}" for note in self.notes)])


def write_replay(folder: Path, evidence: "Evidence") -> str:
    """Write ``folder`` whole. :returns: what to tell the user: what was written, or why nothing was.

    :raises LoadError: the folder holds something else.
    """
    example, fault = _example(evidence), evidence.comparison.first_divergent
    if fault is None or example is None:
        return "replay: nothing was written, no segment is apart on its own"
    if folder.exists() and any(folder.iterdir()) and not (folder / "replay.json").is_file():
        raise LoadError(f"{folder} is there and holds no replay.", hint="Choose another --replay.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_folder(folder) as made:
        replay = _write(made, evidence, example, fault.rank)
        files.write_record(made / "replay.json", replay)
    return replay.told(folder)


def _example(evidence: "Evidence") -> Example | None:
    fault = evidence.comparison.first_divergent
    walks = {walked.name: walked for walked in evidence.segments}
    return walks[fault.segment].example if fault and fault.tensor != END_TO_END and fault.segment in walks else None


@dataclass(frozen=True)
class Redone:
    """One side's segment, run once more by itself."""

    feeds: "dict[str, np.ndarray]"
    made: "dict[str, np.ndarray]"
    piece: Piece | None
    """None for a checkpoint, which has no graph, and for a plan, into which nobody sees."""


def _write(folder: Path, evidence: "Evidence", example: Example, rank: int | None) -> Replay:
    import numpy as np

    sides = {"left": evidence.left, "right": evidence.right}
    with ExitStack() as stack:
        segments = {name: stack.enter_context(side.open(example.segment)) for name, side in sides.items()}
        rank = min((min(one.pieces) for one in segments.values() if isinstance(one, ChainSegment)), default=0) if rank is None else rank
        redone = {name: _redo(segments[name], example, rank, getattr(example, name)) for name in sides}
    for name, one in redone.items():
        np.savez(folder / f"{name}.npz", **one.made)
        if one.piece:
            np.savez(folder / f"{name}.inputs.npz", **one.feeds)
            _write_graph(folder, name, sides[name], one.piece, rank)
    commands, notes = _commands(folder, sides, redone, _allowed(evidence.limits, redone))
    return Replay(
        segment=example.segment,
        rank=rank,
        prompt=example.prompt,
        start=example.given.start,
        tokens=example.given.token_ids.shape[1],
        tensor=example.tensor,
        distance=example.distance,
        left=evidence.comparison.left,
        right=evidence.comparison.right,
        commands=tuple(commands),
        notes=tuple(notes),
    )


def _redo(segment: Any, example: Example, rank: int, made: Any) -> Redone:
    """What goes into the graph and what comes out of it, under the graph's own names; of a checkpoint, what it made."""
    if not isinstance(segment, ChainSegment) or any(piece.model is None for piece in segment.pieces.values()):
        named = {"logits": "logits"} | {name: f"{example.segment}.{name}" for name in ("hidden", "update")}
        return Redone({}, {named[name]: value[None] for name, value in made.first.items() if name in named}, None)
    rank = rank if rank in segment.pieces else min(segment.pieces)
    feeds = segment.feeds(rank, example.given, cache_of(segment, rank, example))
    return Redone(feeds, segment.outputs(rank, feeds), segment.pieces[rank])


def cache_of(segment: ChainSegment, rank: int, example: Example) -> "dict[str, np.ndarray]":
    """The left side's cache before the step; zeros where the left side is a checkpoint, whose cache is its own."""
    given: Given = example.given
    fresh = {name: buffer.numpy() for name, buffer in segment.begin(given.start + given.token_ids.shape[1])[rank].items()}
    return {name: example.cache.get(name, value) for name, value in fresh.items()}


def _write_graph(folder: Path, name: str, side: Side, piece: Piece, rank: int) -> None:
    """The segment's graph, its weights beside it. Portable graphs are written with the bodies of their custom ops, which any backend can read."""
    assert isinstance(side, ChainSide)
    rank = rank if rank in side.records else min(side.records)
    model = lower(piece.model, NOTHING)[0] if isinstance(side.records[rank], GraphsRank) else piece.model
    results = [value for value in model.graph.output if value.name != piece.choice]
    del model.graph.output[:]
    model.graph.output.extend(results)
    with files.whole_file(folder / f"{name}.weights") as file:
        for tensor in external(model.graph):
            file.write(bytes(-file.tell() % ALIGNMENT))
            _move(tensor, side.runner(rank).folder, file, f"{name}.weights")
    files.write_bytes(folder / f"{name}.onnx", model.SerializeToString(deterministic=True))


def _move(tensor: "onnx.TensorProto", source: Path, file: Any, name: str) -> None:
    """Copy a tensor's bytes to the end of ``file``, and let it refer to them there."""
    place, begin = Reference.read(tensor), file.tell()
    left = place.bytes
    with (source / place.location).open("rb") as given:
        given.seek(place.offset)
        while left:
            left -= file.write(given.read(min(left, COPIED)))
    Reference(name, begin, place.bytes).write(tensor)


def _commands(folder: Path, sides: dict[str, Side], redone: dict[str, Redone], allowed: float) -> tuple[list[str], list[str]]:
    """Lines for polygraphy, whose files are written where it is installed."""
    try:
        for name, one in redone.items():
            _write_polygraphy(folder, name, one)
    except ImportError:
        return [], [f"the lines that run it again need polygraphy's own files: {POLYGRAPHY}, and compare again"]
    lines, notes, graphs = [], [], [name for name, one in redone.items() if one.piece]
    for name in graphs:
        if library := _library(sides[name]):
            notes.append(f"{name}.onnx has ops of {library}, which polygraphy cannot load: run it by ONNX Runtime after SessionOptions.register_custom_ops_library")
            continue
        other = "right" if name == "left" else "left"
        shared = redone[name].made.keys() & redone[other].made.keys()
        lines.append(_line(name, name, "--onnxrt", allowed))
        if shared:
            lines.append(_line(name, other, "--onnxrt", allowed))
        else:
            notes.append(f"{name} and {other} have no result in common, since their plans differ: each line only says that a side does again what it did")
    alone = [f"{name} alone makes {', '.join(sorted(redone[name].made.keys() - redone[other].made.keys()))}" for name, other in (("left", "right"), ("right", "left")) if redone[name].made.keys() - redone[other].made.keys()]
    if len(alone) == 2 and all(one.piece for one in redone.values()):
        notes.append(f"{'; '.join(alone)}: results of other names are not compared, and what lies between ranks cannot be replayed by one")
    for name in graphs:
        side = sides[name]
        if isinstance(side, ChainSide) and isinstance(side.records[0], GraphsRank):
            lines += [_line(name, name, "--trt", allowed), f"POLYGRAPHY_USE_TENSORRT_RTX=1 {_line(name, name, '--trt', allowed)}"]
            notes.append("the lines with --trt need a CUDA device, and tensorrt or tensorrt_rtx")
            break
    return list(dict.fromkeys(lines)), list(dict.fromkeys(notes))


def _library(side: Side) -> str | None:
    """The library of ops that a side's graphs need."""
    recorded = side.records[0].options.get("plugins") if isinstance(side, ChainSide) and isinstance(side.records[0], EngineRank) else None
    return recorded["library"] if recorded else None


def _line(graph: str, outputs: str, backend: str, allowed: float) -> str:
    """:param allowed: largest difference of one number."""
    parts = ["polygraphy", "run", f"{graph}.onnx", backend, "--load-inputs", f"{graph}.inputs.json", "--load-outputs", f"{outputs}.json", "--atol", f"{allowed:.0e}", "--rtol", "0"]
    return shlex.join(parts)


def _allowed(limits: Tolerance, redone: dict[str, Redone]) -> float:
    """As much as a token may be off, of a number of usual size; a number is off by more than its token's share now and then."""
    import numpy as np

    sizes = [float(np.sqrt(np.nanmean(np.square(value, dtype=np.float64)))) for one in redone.values() for name, value in one.made.items() if value.dtype.kind == "f" and not name.endswith(".cache.out")]
    return 4 * limits.token * max([size for size in sizes if np.isfinite(size)], default=1.0)


def _write_polygraphy(folder: Path, name: str, one: Redone) -> None:
    """Inputs and outputs as polygraphy saves and loads them."""
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    if one.piece:
        save_json([one.feeds], str(folder / f"{name}.inputs.json"))
    results = RunResults()
    results.add([one.made], runner_name=f"{name} as compared")
    results.save(str(folder / f"{name}.json"))
