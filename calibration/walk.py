"""A step-major walk of portable graphs: one segment's weights at a time, all prompts through it, then the next."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.backends.ort import CPU
from engines.runtime.session import AS_WRITTEN, WEIGHTS_FOLDER, Session, value_of, zeros
from exporter.lowering import lower
from exporter.onnx_files import load_graph
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank
from exporter.plan.schedule import AllGather, AllReduce, Launch
from exporter.plan.signature import BATCH, CONTEXT, Tensor

if TYPE_CHECKING:
    import numpy as np
    import onnx

LOGITS_BYTES = 64 << 20
"""Logits that are computed at once, at most."""
OPTIONS = AS_WRITTEN | {"session.disable_prepacking": "1"}
"""Weights stay mapped rather than copied."""


@dataclass
class Batch:
    """Prompts side by side, padded on the right, and the values that segments yet to come will read."""

    token_ids: "np.ndarray"
    """*Shape:* int64 ``(batch, tokens)``"""
    lengths: tuple[int, ...]
    values: dict[str, "np.ndarray"] = field(default_factory=dict)

    @property
    def mask(self) -> "np.ndarray":
        """Which of the tokens are no padding. *Shape:* ``(batch, tokens)``"""
        import numpy as np

        return np.arange(self.token_ids.shape[1]) < np.array(self.lengths)[:, None]


def batches(prompts: Sequence[Sequence[int]], size: int) -> list[Batch]:
    """``size`` prompts at a time."""
    import numpy as np

    made = []
    for begin in range(0, len(prompts), size):
        rows = prompts[begin : begin + size]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        made.append(Batch(ids, tuple(map(len, rows))))
    return made


@dataclass(frozen=True)
class Part:
    """One segment: the ranks of its stage, and the collective behind it."""

    name: str
    ranks: tuple[GraphsRank, ...]
    after: AllReduce | AllGather | None
    needed_later: frozenset[str]
    """Values that segments after this one read."""


def parts(ranks: dict[int, GraphsRank]) -> tuple[Part, ...]:
    """The segments of a whole model, in the order they run."""
    plan, listed = ranks[0].plan, []
    for stage in range(plan.pipeline):
        stage_ranks = tuple(ranks[stage * plan.tensor + number] for number in range(plan.tensor))
        steps = stage_ranks[0].segments.steps
        for number, step in enumerate(steps):
            if isinstance(step, Launch):
                after = steps[number + 1] if number + 1 < len(steps) else None
                listed.append((step.graph, stage_ranks, after if isinstance(after, AllReduce | AllGather) else None))
    reads = [{tensor.name for tensor in of[0].segments.signatures[name].inputs} for name, of, _ in listed]
    return tuple(Part(*one, frozenset().union(*reads[number + 1 :])) for number, one in enumerate(listed))


Observer = Callable[[GraphsRank, Batch, dict[str, Any], "np.ndarray"], None]
"""Called after each run of a rank's graph with the rank, the batch, the tapped values, and which tokens count."""
Folder = Callable[[str], Path]
"""Segment → the folder of graphs that it is taken from: chains may be mixed of several."""


def walk_part(part: Part, given: Sequence[Batch], folder: Path, taps: Sequence[str] = (), observe: Observer | None = None) -> Iterator[tuple[Batch, Any]]:
    """Run all batches through one segment and leave in each what later segments read.

    :param folder: of graphs; its ranks' records are those of ``part`` (or of graphs with the same signatures).
    :param taps: inner values that ``observe`` wants to see.
    :returns: each batch as it is done, and for the head its logits, in pieces: float32 ``(rows, tokens, vocab)``.
    """
    sessions = [open_segment(folder, record, part.name, taps) for record in part.ranks]
    for batch in given:
        for select in _selections(part, batch):
            outputs = [session.run(*_feeds(session, batch, select)) for session in sessions]
            counts = batch.mask if select is None else batch.mask[:, select]
            for record, found in zip(part.ranks, outputs, strict=True):
                if observe:
                    observe(record, batch, {name: found[name].numpy() for name in taps if name in found}, counts)
            merged = _merge(part, outputs)
            if select is not None:
                yield batch, (select, merged["logits"])
        if part.name != "head":
            batch.values = {name: value for name, value in (batch.values | merged).items() if name in part.needed_later}
            yield batch, None


def _selections(part: Part, batch: Batch) -> list[Any]:
    """Positions whose logits are computed at once: the head's runs; other segments have one."""
    import numpy as np

    if part.name != "head":
        return [None]
    rows, tokens = batch.token_ids.shape
    step = max(1, LOGITS_BYTES // (4 * rows * part.ranks[0].config.vocab))
    return [np.arange(begin, min(begin + step, tokens)) for begin in range(0, tokens, step)]


def _feeds(session: Session, batch: Batch, select: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np

    rows, tokens = batch.token_ids.shape
    given = {"token_ids": batch.token_ids, "start": np.zeros(rows, np.int64)} | batch.values
    if select is not None:
        given["select"] = np.tile(select, (rows, 1))
    sizes = {BATCH: rows, CONTEXT: tokens}
    states = {tensor.name: zeros(tuple(sizes.get(dim, dim) for dim in tensor.shape), tensor.dtype) for tensor in session.signature.state_inputs}
    wanted = {tensor.name for tensor in session.signature.inputs}
    return {name: value_of(value) for name, value in given.items() if name in wanted}, states


def _merge(part: Part, outputs: list[dict[str, Any]]) -> dict[str, "np.ndarray"]:
    """What the collective makes of the ranks' values; what is the same on all ranks, from the first."""
    import numpy as np

    values = {name: value.numpy().copy() for name, value in outputs[0].items() if name in part.needed_later or name == "logits"}
    if part.after is None:
        return values
    mine = [found[part.after.value].numpy() for found in outputs]
    joined = np.concatenate(mine, axis=-1) if isinstance(part.after, AllGather) else sum(one.astype(np.float32) for one in mine).astype(mine[0].dtype)
    return values | {part.after.result: joined}


CHOICES_SHOWN = replace(CPU, kernels=CPU.kernels - {"com.microsoft.MoEGroupRouter"})
"""That kernel does not tell which experts it chose, and whoever calibrates asks."""


def open_segment(folder: Path, record: GraphsRank, name: str, taps: Sequence[str] = ()) -> Session:
    """A rank's segment on ONNX Runtime, with the experts' kernel where it has one, and inner values as outputs."""
    import os

    import onnx

    where = folder / records.rank_folder(record.rank)
    model, _ = lower(load_graph(where / record.segments.graphs[name]), CHOICES_SHOWN)
    signature = record.segments.signatures[name]
    made = {output for node in model.graph.node for output in node.output} - {tensor.name for tensor in signature.outputs}
    known = _element_types(model.graph, record)
    for tap in taps:
        if tap in made:
            model.graph.output.append(onnx.helper.make_tensor_value_info(tap, known[tap], None))
    extra = tuple(Tensor(tap, "", ()) for tap in taps if tap in made)
    options = {"config": OPTIONS | {WEIGHTS_FOLDER: str(where)}}
    return Session(model.SerializeToString(), replace(signature, outputs=signature.outputs + extra), os.cpu_count() or 1, options)


def _element_types(graph: "onnx.GraphProto", record: GraphsRank) -> dict[str, int]:
    """Values are of the graphs' precision; what a router chose are ids."""
    from collections import defaultdict

    from onnx import TensorProto

    usual = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[record.precision]
    found: dict[str, int] = defaultdict(lambda: usual)
    for node in graph.node:
        if node.op_type == "TopK":
            found[node.output[1]] = TensorProto.INT64
    return found
