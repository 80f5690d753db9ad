"""What a rank's folder says it holds and multiplies, for each kind of folder; and what its plan says that it must."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint.reader import TensorInfo, read_header
from exporter.errors import LoadError
from exporter.lowering import all_nodes
from exporter.lowering.packing import source_of
from exporter.models.weights import DTYPES, stored_tensors
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, GraphsRank

from ..backends.emitted import Emitted
from ..backends.parsed import (
    BITS,
    MATRICES,
    OTHER,
    Made,
    Parsed,
    Product,
    Weight,
    activations,
    origin_of,
    portable,
    products_of,
    sample,
    sample_of,
)

if TYPE_CHECKING:
    import onnx

Record = EngineRank | GraphsRank
PLANS = ("tensorrt", "tensorrt-rtx")
"""Backends whose engines are plans, with records beside them."""
ANY = None
"""A dimension that a scheme may choose: the blocks of a grid of scales."""


@dataclass(frozen=True)
class Side:
    """One of the two folders."""

    folder: Path
    backend: str
    """``graphs`` for portable graphs."""
    ranks: dict[int, Record]

    @property
    def first(self) -> Record:
        return self.ranks[min(self.ranks)]


@dataclass(frozen=True)
class RankSide:
    """What was found of one rank."""

    weights: dict[str, Weight]
    products: tuple[Product, ...]
    layers: tuple[Emitted, ...] | None = None
    """What the compiler emitted, where there is one."""
    engine_bytes: int = 0
    """Of the files that are run: weights, and graphs or plans."""
    copies: Counter[str] = field(default_factory=Counter)
    """Weight → plans that hold it, where the rank is several plans."""


@dataclass(frozen=True)
class Promise:
    """What the plan and the quantisation say of one tensor."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...] | None
    """None where only the presence is certain."""


def read_side(folder: Path) -> Side:
    """:raises LoadError: no folder of graphs or engines."""
    kind = records.kind_of_set(folder)
    if kind is None:
        raise LoadError(f"{folder} holds no finished rank (no rank-*/{records.MANIFEST}).", hint="Give folders that `moetrt build` wrote.")
    ranks = records.read_ranks(kind, folder)
    return Side(folder, getattr(next(iter(ranks.values())), "backend", "graphs"), ranks)


def read_rank(side: Side, rank: int) -> RankSide:
    """:raises LoadError: engines from before builds recorded what they are made of."""
    record, folder = side.ranks[rank], side.folder / records.rank_folder(rank)
    graphs = (record.whole if isinstance(record, GraphsRank) else record.assembly).graphs
    if side.backend in PLANS:
        return _read_plans(record, folder, graphs)
    weights, products = {}, []
    for file in graphs.values():
        held, made = _read_graph(folder / file, set(record.quantization.weights) if record.quantization else set())
        weights |= held
        products += made
    run = [*graphs.values(), *(name for name in record.files if name.endswith(".safetensors"))]
    return RankSide(weights, tuple(products), None, sum(record.files[name].bytes for name in run))


def _read_plans(record: EngineRank, folder: Path, graphs: dict[str, str]) -> RankSide:
    weights, products, layers, copies = {}, [], [], Counter()
    for launch in graphs:
        for name in (f"{launch}.tensors.json", f"{launch}.layers.json"):
            if name not in record.files:
                raise LoadError(f"{folder} has no {name}: it was built before builds recorded that.", hint="Remove the folder and build it again.")
        parsed = files.read_record(Parsed, folder / f"{launch}.tensors.json")
        weights |= parsed.weights
        copies.update(parsed.weights.keys())
        products += parsed.products
        path = folder / f"{launch}.layers.json"
        layers += files.from_json(tuple[Emitted, ...], files.read_json(path), str(path))
    return RankSide(weights, tuple(products), tuple(layers), sum(record.files[file].bytes for file in graphs.values()), copies)


def _read_graph(path: Path, quantised: set[str]) -> tuple[dict[str, Weight], list[Product]]:
    model = load_graph(path)
    headers: dict[str, dict[str, TensorInfo]] = {}
    weights = {}
    for name, tensor in portable(model).items():
        source = source_of(name)
        if source != name:
            stored = headers.setdefault("weights", read_header(path.parent / "weights.safetensors"))
            if source in stored:
                weights[source] = _stored(stored[source], source in quantised)
        else:
            weights[name] = Weight(_dtype(tensor), tuple(tensor.dims), sample_of(tensor, path.parent))
    return weights, list(_graph_products(model))


def _stored(info: TensorInfo, quantised: bool) -> Weight:
    """What a reordered tensor was made of; the file has two 4-bit values in a byte."""
    four = quantised and info.dtype == "U8"
    shape = (*info.shape[:-1], 2 * info.shape[-1]) if four else info.shape
    return Weight("I4" if four else info.dtype, tuple(shape), sample(info.file, info.offset, info.bytes, tuple(shape)))


def _dtype(tensor: "onnx.TensorProto") -> str:
    from onnx import TensorProto

    kinds = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "INT64": "I64", "INT32": "I32", "INT8": "I8", "UINT8": "U8", "INT4": "I4"}
    return kinds[TensorProto.DataType.Name(tensor.data_type)]


MULTIPLY = {"MatMul": (0, 1), "Gemm": (0, 1), "MatMulInteger": (0, 1)}
"""Op → the inputs that are factors."""
KERNELS = {"MatMulNBits": (1,), "MoE": (2, 4, 6), "QMoE": (2, 5, 8), "PackedLinear": (1,), "PackedExperts": (3, 5), "PackedFeedForward": (1, 3, 5)} | MATRICES
"""Op that multiplies in its own way → the inputs that are matrices, where they are given."""
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast", "CastLike", "Identity", "Gather")


def _graph_products(model: "onnx.ModelProto") -> Iterator[Product]:
    nodes = list(all_nodes(model.graph))
    makers, stored = {name: node for node in nodes for name in node.output}, set(portable(model))
    how = partial(_how, makers, stored)
    for node in nodes:
        if node.op_type in MULTIPLY:
            yield from products_of(node.name, (node.input[place] for place in MULTIPLY[node.op_type]), how)
        for place in KERNELS.get(node.op_type, ()):
            weight, _ = origin_of(node.input[place], how) if place < len(node.input) else (None, False)
            if weight:
                yield Product(node.name, source_of(weight), activations(node))


def _how(makers: "dict[str, onnx.NodeProto]", stored: set[str], value: str) -> Made:
    if value in stored:
        return Made("weight", value)
    node = makers.get(value)
    if node is None:
        return OTHER
    way = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}.get(node.op_type) or ("move" if node.op_type in MOVES else None)
    return Made(way, node.input[0]) if way else OTHER


def promised(record: Record) -> dict[str, Promise]:
    """Each tensor that a rank must hold, by its shard of the model and by what was quantised."""
    modes = record.quantization.weights if record.quantization else {}
    found = {}
    for tensor in stored_tensors(record.config, record.shard, record.precision):
        if tensor.name in modes:
            found |= _quantised(tensor.name, tensor.shape, modes[tensor.name], DTYPES[record.precision])
        else:
            found[tensor.name] = Promise((tensor.dtype,), tensor.shape)
    return found


def _quantised(name: str, shape: tuple[int, ...], mode: str, dtype: str) -> dict[str, Promise]:
    """The values, their scales and, of static inputs, theirs: docs/formats.md, "Names"."""
    if len(shape) == 3:
        experts, outputs, inputs = shape
        found = {name: Promise(("I8", "I4"), (experts, inputs, outputs)), f"{name}.scale": Promise((dtype,), (experts, ANY, outputs))}
        if mode == "static" and name.endswith(".down"):
            found[f"{name}.input_scale"] = Promise((dtype,), (experts, 1, 1))
        return found
    return {name: Promise(("I8", "I4"), shape), f"{name}.scale": Promise((dtype,), None)}


def segment_of(name: str) -> str:
    """``layers.3.moe_ffn.experts.down``, ``/layers.3/moe_ffn/experts/MatMul`` → ``layers.3.moe_ffn``; ``head.weight`` → ``head``."""
    parts = name.strip("/").replace("/", ".").split(".")
    return ".".join(parts[: 3 if parts[0] == "layers" else 1])


def fits(weight: Weight, promise: Promise) -> bool:
    shape = promise.shape
    if weight.dtype not in promise.dtypes:
        return False
    return shape is None or (len(shape) == len(weight.shape) and all(want in (ANY, size) for want, size in zip(shape, weight.shape, strict=True)))


def held_bytes(side: RankSide) -> dict[str, int]:
    """Segment → bytes of the constants that the plan holds for it, by the compiler's log.

    A layer that a product was fused into belongs to the product's segment, whatever else it does.
    """
    segments = {product.node: segment_of(product.weight) for product in side.products}
    found: dict[str, int] = {}
    for layer in side.layers or ():
        own = next((segments[node] for node in layer.nodes if node in segments), segment_of(layer.nodes[0]) if layer.nodes else "elsewhere")
        for constant in layer.holds:
            segment = segment_of(constant.weight) if constant.weight in side.weights else own
            found[segment] = found.get(segment, 0) + constant.bytes
    return found


def promised_bytes(side: RankSide, promises: dict[str, Promise]) -> dict[str, int]:
    """Segment → bytes of its stored tensors, of each as often as plans hold it: as they are where they are as promised, else as they should be."""
    found: dict[str, int] = {}
    for name, promise in promises.items():
        weight, segment = side.weights.get(name), segment_of(name)
        size = weight.bytes if weight and fits(weight, promise) else _least(promise)
        found[segment] = found.get(segment, 0) + size * max(side.copies[name], 1)
    return found


def _least(promise: Promise) -> int:
    return prod(size for size in promise.shape if size is not ANY) * BITS[promise.dtypes[0]] // 8 if promise.shape else 0
