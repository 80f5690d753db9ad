"""Which bytes a decode step must read, by what the lowered graphs refer to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint.layout import Reference
from exporter.lowering import all_nodes
from exporter.onnx_files import load_graph
from exporter.plan import manifest as records
from exporter.plan.manifest import Assembly, EngineRank, GraphsRank
from exporter.plan.signature import BATCH, CONTEXT

if TYPE_CHECKING:
    import onnx

WHOLE, ROWS, EXPERTS = "whole", "rows", "experts"
"""How a step reads a tensor: all of it; a row for each token; the experts that tokens chose."""
LOOKUPS = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3), "RotaryEmbedding": (1, 2), "LatentAttention": (5, 6)}
"""Op → inputs of which it reads the rows that another input names."""
BITS = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2, "BOOL": 8}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


@dataclass(frozen=True)
class Mapped:
    """A range of a weights file that a graph refers to."""

    name: str
    bytes: int
    read: str
    """``WHOLE``, ``ROWS`` or ``EXPERTS``."""
    first_dim: int
    """Rows or experts that it holds."""


@dataclass(frozen=True)
class Footprint:
    """What an engine set maps and keeps."""

    weights: tuple[Mapped, ...]
    """Each range once, of all ranks."""
    cache_bytes_per_token: int
    """Latents of one position of one row, all layers and ranks."""
    chosen: float
    """The part of a layer's routed experts that one token chooses; 0 where there are none."""

    @property
    def weight_bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)


def step_bytes(footprint: Footprint, batch: int, positions: float) -> float:
    """Bytes that one decode step of ``batch`` rows must read, on average over routings.

    Experts count by how many different ones the rows are expected to choose, independently of one another: exactly
    ``top_k / experts`` of the bytes for one row. Activations, and what is written, are not counted.

    :param positions: cache positions that a row reads.
    """
    experts = 1 - (1 - footprint.chosen) ** batch
    weights = sum(
        weight.bytes * {WHOLE: 1.0, ROWS: min(1.0, batch / weight.first_dim), EXPERTS: experts}[weight.read] for weight in footprint.weights
    )
    return weights + batch * positions * footprint.cache_bytes_per_token


def read_footprint(folder: Path, ranks: dict[int, EngineRank] | dict[int, GraphsRank]) -> Footprint:
    """The footprint of the ranks in ``folder``, by their graphs; weights themselves are not read."""
    routing, found = ranks[0].config.routing, []
    for rank, record in ranks.items():
        # One range may serve several tensors and graphs: a range that any of them reads whole counts whole.
        ranges: dict[tuple, Mapped] = {}
        for graph in _graphs(folder / records.rank_folder(rank), assembly_of(record)):
            for where, weight in mapped(graph, len(record.shard.experts)):
                if where not in ranges or weight.read == WHOLE:
                    ranges[where] = weight
        found += ranges.values()
    cache = sum(cache_bytes(assembly_of(record), 1, 1) for record in ranks.values())
    return Footprint(tuple(found), cache, routing.top_k / routing.experts if routing else 0.0)


def assembly_of(record: EngineRank | GraphsRank) -> Assembly:
    """The assembly that the runtime opens."""
    if isinstance(record, EngineRank):
        return record.assembly
    return record.whole if record.plan.tensor == 1 else record.segments


def cache_bytes(assembly: Assembly, batch: int, context: int) -> int:
    """Bytes of a rank's latent cache for ``batch`` rows of ``context`` positions."""
    sizes = {BATCH: batch, CONTEXT: context}
    states = [tensor for signature in assembly.signatures.values() for tensor in signature.state_inputs]
    return sum(prod(sizes.get(dim, dim) for dim in tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in states)


def _graphs(folder: Path, assembly: Assembly) -> "Iterator[onnx.GraphProto]":
    for file in dict.fromkeys(assembly.graphs.values()):
        yield load_graph(folder / file).graph


def mapped(graph: "onnx.GraphProto", experts: int) -> Iterator[tuple[tuple[str, int], Mapped]]:
    """Every external initializer that a node reads, with its file and offset.

    :param experts: routed experts that the rank holds: the first dimension of their tensors.
    """
    uses: dict[str, set[tuple[str, int]]] = {}
    for node in all_nodes(graph):
        for position, name in enumerate(node.input):
            uses.setdefault(name, set()).add((node.op_type, position))
    for tensor in graph.initializer:
        place = Reference.read(tensor)
        if place and tensor.name in uses:
            size = place.bytes or tensor_bytes(tensor)
            first = tensor.dims[0] if tensor.dims else 1
            yield (place.location, place.offset), Mapped(tensor.name, size, _read(tensor, uses[tensor.name], experts), first)


def _read(tensor: "onnx.TensorProto", uses: Iterable[tuple[str, int]], experts: int) -> str:
    if all(position in LOOKUPS.get(op, ()) for op, position in uses):
        return ROWS
    # By its name, which every lowering keeps: a kernel reads the experts that were chosen, and no body has to read more.
    return EXPERTS if ".experts." in tensor.name and tensor.dims and tensor.dims[0] == experts else WHOLE


def tensor_bytes(tensor: "onnx.TensorProto") -> int:
    """Bytes by dtype and shape; two values of 4 bits lie in a byte."""
    from onnx import TensorProto, helper

    name = TensorProto.DataType.Name(tensor.data_type)
    bits = BITS.get(name) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-prod(tensor.dims) * bits // 8)
