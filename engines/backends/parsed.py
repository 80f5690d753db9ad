"""What a graph holds and multiplies, as a backend's parser took it: kept beside a plan, which without a GPU cannot be asked.

Where a factor comes from is traced alike in a parsed network and in an ONNX graph; the readers of both only say how each value is made.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Reference
from exporter.lowering.packing import source_of

if TYPE_CHECKING:
    import onnx

BITS = {"F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I8": 8, "U8": 8, "I4": 4}
"""dtype, as safetensors names it (and ``I4``) → bits of a value."""
MATRICES = {"Experts": (3, 4), "QuantizedExperts": (3, 5)}
"""Our op → the inputs that are matrices."""
EDGE = 2048
"""Bytes at each end of a matrix that go into its sample, as into a checkpoint's fingerprint."""
INPUT_SCALE = "input_scale"
"""How the names of static scales end, which are constants of the graph."""
STORED = re.compile(r"(embed|head|rope|layers\.\d+\.\w+)\.[\w.]+")
"""Names of stored tensors (docs/formats.md, "Names")."""


@dataclass(frozen=True)
class Weight:
    """One stored tensor."""

    dtype: str
    """As safetensors names it; ``I4`` for two values in a byte."""
    shape: tuple[int, ...]
    """Of values, not of bytes."""
    sample: str | None
    """sha256 over both ends of each matrix of it: equal for equal contents, and cheap."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Product:
    """One product by a stored matrix."""

    node: str
    weight: str
    input: str
    """``int8`` where what it is multiplied by goes through int8, else ``float``."""


@dataclass(frozen=True)
class Parsed:
    """``<launch>.tensors.json``: the network that a plan was compiled from."""

    weights: dict[str, Weight]
    products: tuple[Product, ...]
    kind: str = "parsed-network"
    version: int = 1


@dataclass(frozen=True)
class Made:
    """How a value comes about."""

    how: str
    """``move`` (the same numbers), ``quantize``, ``dequantize``, ``weight``, or ``other``."""
    source: str = ""
    """The value that it is made from; of a weight, its name."""


OTHER = Made("other")


def products_of(node: str, factors: Iterable[str], how: Callable[[str], Made]) -> Iterator[Product]:
    """The products by stored matrices among one node's factors, as a rule one or none."""
    found = [origin_of(value, how) for value in factors]
    for number, (weight, _) in enumerate(found):
        if weight:
            rounded = any(int8 for other, (_, int8) in enumerate(found) if other != number)
            yield Product(node, weight, "int8" if rounded else "float")


def origin_of(value: str, how: Callable[[str], Made]) -> tuple[str | None, bool]:
    """:returns: the weight that a value is, or None; whether it was rounded to int8 on its way."""
    while True:
        made = how(value)
        if made.how in ("weight", "quantize", "other"):
            return made.source if made.how == "weight" else None, made.how == "quantize"
        value = made.source


def sample(path: Path, offset: int, size: int, shape: tuple[int, ...]) -> str:
    """Of ``size`` bytes of a file. An expert that is another, or is elsewhere, changes it."""
    matrices = shape[0] if len(shape) == 3 else 1
    each, digest = size // max(matrices, 1), hashlib.sha256()
    with open(path, "rb") as file:
        for start in range(offset, offset + size, each) if each else ():
            for begin, length in ((start, min(EDGE, each)), (start + max(each - EDGE, 0), min(EDGE, each))):
                file.seek(begin)
                digest.update(file.read(length))
    return digest.hexdigest()


def sample_of(tensor: "onnx.TensorProto", folder: Path) -> str:
    """Of an initializer: of the file that it refers to, or of its own bytes."""
    place = Reference.read(tensor)
    if place:
        return sample(folder / place.location, place.offset, place.bytes, tuple(tensor.dims))
    from onnx import numpy_helper

    return hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()


def portable(model: "onnx.ModelProto") -> "dict[str, onnx.TensorProto]":
    """The initializers that go by names of ours: stored tensors, and the static scales of inputs."""
    return {tensor.name: tensor for tensor in model.graph.initializer if STORED.fullmatch(tensor.name) or tensor.name.endswith(INPUT_SCALE)}


def activations(node: "onnx.NodeProto") -> str:
    """What the matrices of one of our ops, or of a kernel in its place, are multiplied by: ``int8`` or ``float``."""
    given = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "activations"), "float")
    return "float" if given in ("float", "fine") else "int8"


def read_network(trt: ModuleType, network: Any, model: "onnx.ModelProto", lowered: "onnx.ModelProto", folder: Path) -> Parsed:
    """Of TensorRT's network. A tensor in another order counts as what it was made of.

    :param model: the portable graph.
    :param lowered: what was parsed.
    :param folder: where the portable graph's weights are.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    stored = portable(model)
    constants = {source_of(layer.name): layer for layer in layers if layer.type == trt.LayerType.CONSTANT}
    weights = {name: _weight(trt, constants[name], stored[name], folder) for name in sorted(constants.keys() & stored.keys())}
    makers = {layer.get_output(number).name: layer for layer in layers for number in range(layer.num_outputs)}
    products = [product for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY for product in _products(trt, layer, makers)]
    return Parsed(weights, (*products, *_plugin_products(lowered, stored)))


def _weight(trt: ModuleType, layer: Any, tensor: "onnx.TensorProto", folder: Path) -> Weight:
    value = layer.get_output(0)
    shape = tensor.dims if layer.name != source_of(layer.name) else value.shape
    return Weight(_dtype(trt, value), tuple(shape), sample_of(tensor, folder))


def _plugin_products(lowered: "onnx.ModelProto", stored: "dict[str, onnx.TensorProto]") -> Iterator[Product]:
    """Of nodes of ours that are left: plugins, into which a network does not see."""
    for node in lowered.graph.node:
        for place in MATRICES.get(node.op_type, ()):
            weight = source_of(node.input[place])
            if weight in stored:
                yield Product(node.name, weight, activations(node))


def _dtype(trt: ModuleType, value: Any) -> str:
    kinds = {"FLOAT": "F32", "HALF": "F16", "BF16": "BF16", "INT64": "I64", "INT32": "I32", "INT8": "I8", "UINT8": "U8", "INT4": "I4"}
    return kinds[value.dtype.name]


def _products(trt: ModuleType, layer: Any, makers: dict[str, Any]) -> Iterator[Product]:
    kinds = trt.LayerType
    ways = {kinds.QUANTIZE: "quantize", kinds.DEQUANTIZE: "dequantize", kinds.CONSTANT: "weight"}
    moves = (kinds.SHUFFLE, kinds.CAST, kinds.IDENTITY, kinds.UNSQUEEZE, kinds.SQUEEZE)

    def how(value: str) -> Made:
        maker = makers.get(value)
        if maker is None:
            return OTHER
        if maker.type == kinds.CONSTANT:
            return Made("weight", maker.name)
        way = ways.get(maker.type) or ("move" if maker.type in moves else None)
        return Made(way, maker.get_input(0).name) if way else OTHER

    return products_of(layer.name, (layer.get_input(number).name for number in (0, 1)), how)
