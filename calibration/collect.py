"""Ranges of activations, segment by segment: resumable after each, in memory of one segment and the prompts' streams."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.reader import stored_array
from exporter.errors import RunError
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank

from .observers import Histogram
from .walk import Batch, Part, parts, walk_part

if TYPE_CHECKING:
    import numpy as np
    import onnx

log = logging.getLogger(__name__)
SPLIT_INPUTS = ("o", "down")
"""Linears whose input each rank holds a part of; the others' inputs are the same on all tensor ranks."""


@dataclass(frozen=True)
class Taps:
    """What is observed in one segment's graph."""

    linears: dict[str, str]
    """Weight → the value that it multiplies."""
    chosen: str | None = None
    """The value that names each token's experts."""
    normed: frozenset[str] = frozenset()
    """Values that are a norm's output."""


def find_taps(graph: "onnx.GraphProto") -> Taps:
    """Products of a value with a stored matrix, the router's apart, and what the routed experts read."""
    from onnx import TensorProto

    stored = {tensor.name: len(tensor.dims) for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    made = {output: node.op_type for node in graph.node for output in node.output}
    linears, chosen = {}, None
    for node in graph.node:
        if node.op_type == "MatMul" and stored.get(node.input[1]) == 2 and not node.input[1].endswith(".router"):
            linears[node.input[1]] = node.input[0]
        if node.op_type == "Experts":
            linears[node.input[3]], chosen = node.input[0], node.input[1]
    return Taps(linears, chosen, frozenset(value for value in linears.values() if _is_normed(value, made, graph)))


def _is_normed(value: str, made: dict[str, str], graph: "onnx.GraphProto") -> bool:
    """Whether only movement lies between a norm that stands on the residual stream and the value."""
    producers = {output: node for node in graph.node for output in node.output}
    while made.get(value) in ("Reshape", "Flatten", "Cast"):
        value = producers[value].input[0]
    node = producers.get(value)
    return node is not None and any(name.endswith((".attention.norm", ".dense_ffn.norm", ".moe_ffn.norm")) for name in node.input)


@dataclass
class Seen:
    """Statistics of one segment, in mergeable form."""

    linears: dict[str, Histogram]
    channels: dict[str, "np.ndarray"]
    """Weight → largest magnitude by channel of its input."""
    experts: list[Histogram]
    """Of the product before ``down``, by expert."""
    tokens: "np.ndarray"
    """Routed tokens by expert."""

    def merge(self, other: "Seen") -> None:
        import numpy as np

        for name, histogram in other.linears.items():
            self.linears.setdefault(name, Histogram()).merge(histogram)
        for name, channels in other.channels.items():
            self.channels[name] = np.maximum(self.channels.get(name, 0), channels)
        for mine, theirs in zip(self.experts, other.experts, strict=True):
            mine.merge(theirs)
        self.tokens = self.tokens + other.tokens


def nothing(experts: int) -> Seen:
    import numpy as np

    return Seen({}, {}, [Histogram() for _ in range(experts)], np.zeros(experts, np.int64))


class SegmentObserver:
    """Fills a :class:`Seen` from the tapped values of one segment's runs."""

    def __init__(self, part: Part, taps: Taps, folder: Path) -> None:
        self.part, self.taps, self.folder = part, taps, folder
        self.seen = nothing(part.ranks[0].config.experts if taps.chosen else 0)
        self.gate_ups: dict[int, np.ndarray] = {}

    def __call__(self, record: GraphsRank, batch: Batch, values: dict[str, Any], counts: "np.ndarray") -> None:
        import numpy as np

        first, rows = record.shard.tensor_rank == 0, counts.reshape(-1)
        kept = {name: value.reshape(len(rows), -1)[rows] for name, value in values.items()}
        for weight, value in self.taps.linears.items():
            if first or weight.rpartition(".")[2] in SPLIT_INPUTS:
                self._add(weight, value, kept[value])
        if self.taps.chosen:
            chosen = kept[self.taps.chosen]
            weight = next(name for name in self.taps.linears if name.endswith("experts.gate_up"))
            if first:
                self.seen.tokens += np.bincount(chosen.reshape(-1), minlength=len(self.seen.tokens))
            self._add_experts(record, weight, kept[self.taps.linears[weight]].astype(np.float32), chosen)

    def _add(self, weight: str, value: str, x: "np.ndarray") -> None:
        import numpy as np

        self._count(self.seen.linears.setdefault(weight, Histogram()), x, f"the input of {weight}")
        if value in self.taps.normed and len(x):
            most = np.abs(x).max(axis=0).astype(np.float32)
            self.seen.channels[weight] = np.maximum(self.seen.channels.get(weight, np.float32(0)), most)

    def _add_experts(self, record: GraphsRank, weight: str, x: "np.ndarray", chosen: "np.ndarray") -> None:
        """The product before ``down`` of each local expert, over the tokens routed to it and no others."""
        import numpy as np

        if record.rank not in self.gate_ups:
            self.gate_ups[record.rank] = stored_array(self.folder / records.rank_folder(record.rank) / record.weights, weight)
        for local, expert in enumerate(record.shard.experts):
            mine = x[(chosen == expert).any(axis=1)]
            if len(mine):
                both = mine @ self.gate_ups[record.rank][local].astype(np.float32).T
                gate, up = both[:, 0::2], both[:, 1::2]
                self._count(self.seen.experts[expert], gate / (1 + np.exp(-gate)) * up, f"the product in expert {expert} of {self.part.name}")

    @staticmethod
    def _count(histogram: Histogram, values: "np.ndarray", what: str) -> None:
        histogram.add(values)
        if histogram.bad:
            raise RunError(f"{what} has {histogram.bad} values that are not finite.", hint="Check the graphs with `moetrt compare` first; fp16 graphs overflow where fp32 ones do not.")


class Collection:
    """A walk of all segments that keeps what it has in a folder, so that it goes on where it was cut off.

    :param scratch: holds the statistics of each segment and round, and the streams after the last finished segment.
    :param request: digest of all that decides the result: what another request left is thrown away.
    """

    def __init__(self, graphs: Path, ranks: dict[int, GraphsRank], scratch: Path, request: str) -> None:
        self.graphs, self.parts, self.scratch, self.request = graphs, parts(ranks), scratch, request
        self.experts = ranks[0].config.experts
        if self._state().get("request") != request:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)

    def _state(self) -> dict[str, Any]:
        path = self.scratch / "state.json"
        return files.read_json(path) if path.is_file() else {}

    def run(self, number: int, given: Sequence[Batch], advance: Callable[[str], None]) -> None:
        """Round ``number``: walk ``given`` through all segments that the round has not seen yet.

        :param advance: called with each segment's name when it is done.
        """
        state = self._state()
        begin = state["segments"] if state.get("round") == number else len(self.parts) if state.get("round", -1) > number else 0
        if 0 < begin < len(self.parts):
            self._restore(given)
        if begin:
            log.info("round %d: %d of %d segments are in %s already, of an equal request", number, begin, len(self.parts), self.scratch)
        for index, part in enumerate(self.parts):
            if index >= begin:
                began = time.perf_counter()
                self._segment(number, index, part, given)
                log.debug("round %d: %d prompts through %s in %.1f s", number, sum(len(batch.lengths) for batch in given), part.name, time.perf_counter() - began)
            advance(part.name)

    def _segment(self, number: int, index: int, part: Part, given: Sequence[Batch]) -> None:
        record = part.ranks[0]
        graph = load_graph(self.graphs / records.rank_folder(record.rank) / record.segments.graphs[part.name]).graph
        taps = find_taps(graph)
        observer = SegmentObserver(part, taps, self.graphs)
        wanted = [*dict.fromkeys(taps.linears.values()), *([taps.chosen] if taps.chosen else [])]
        for _ in walk_part(part, given, self.graphs, wanted, observer):
            pass
        save_seen(self.scratch / f"round-{number}.{part.name}.npz", observer.seen)
        self._keep(number, index + 1, given)

    def _keep(self, number: int, segments: int, given: Sequence[Batch]) -> None:
        """The streams first, then the state that points to them."""
        import numpy as np

        name = f"streams-{number}-{segments}.npz"
        with files.whole_file(self.scratch / name) as file:
            np.savez(file, **{f"{row}/{key}": value for row, batch in enumerate(given) for key, value in batch.values.items()})
        files.write_record(self.scratch / "state.json", {"request": self.request, "round": number, "segments": segments, "streams": name})
        for stale in self.scratch.glob("streams-*.npz"):
            if stale.name != name:
                stale.unlink()

    def _restore(self, given: Sequence[Batch]) -> None:
        import numpy as np

        with np.load(self.scratch / self._state()["streams"]) as kept:
            for key in kept.files:
                row, name = key.split("/", 1)
                given[int(row)].values[name] = kept[key]

    def segments(self) -> Iterator[tuple[str, Seen]]:
        """What all rounds together saw, segment by segment."""
        for part in self.parts:
            whole = None
            for path in sorted(self.scratch.glob(f"round-*.{part.name}.npz")):
                seen = load_seen(path)
                if whole is None:
                    whole = seen
                else:
                    whole.merge(seen)
            if whole is not None:
                yield part.name, whole

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


def save_seen(path: Path, seen: Seen) -> None:
    import numpy as np

    arrays = {"tokens": seen.tokens}
    for kind, histograms in (("linears", seen.linears), ("experts", dict(enumerate(seen.experts)))):
        for name, one in histograms.items():
            arrays[f"{kind}/{name}/counts"] = one.counts
            arrays[f"{kind}/{name}/rest"] = np.array([one.top, one.maximum, one.total], np.float64)
    arrays |= {f"channels/{name}": value for name, value in seen.channels.items()}
    with files.whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_seen(path: Path) -> Seen:
    import numpy as np

    with np.load(path) as kept:
        seen = nothing(len(kept["tokens"]))
        seen.tokens = kept["tokens"]
        for key in kept.files:
            kind, _, rest = key.partition("/")
            name = rest.removesuffix("/counts")
            if kind == "channels":
                seen.channels[rest] = kept[key]
            elif rest.endswith("/counts"):
                made = seen.linears.setdefault(name, Histogram()) if kind == "linears" else seen.experts[int(name)]
                made.counts = kept[key]
                made.top, made.maximum, total = (float(value) for value in kept[f"{kind}/{name}/rest"])
                made.total = int(total)
        return seen
