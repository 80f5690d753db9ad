"""What TensorRT made of int8: read from the compiler's list of layers, as ``log_of`` keeps it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

PARTS = ("Inputs", "Constants", "Outputs")
PLUGIN = "custom_layer"
LISTS = ", ".join(rf"{part}: \[(?P<{part}>.*?)\]" for part in PARTS)
LAYER = re.compile(rf"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), {LISTS}, TacticName:(?P<rest>.*)$", re.MULTILINE)
OPERAND = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\], (?P<layout>.*?)Datatype: (?P<dtype>\w+)")
NODE = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True)
class Operand:
    """A tensor as one layer sees it."""

    name: str
    dims: tuple[int, ...]
    """-1 for what a profile leaves open."""
    dtype: str
    layout: str
    """How it lies in memory, as the compiler words it."""


@dataclass(frozen=True)
class Layer:
    """One layer that the compiler emitted."""

    name: str
    kind: str
    """``gemm``, ``kgen`` (generated), ``runtime_fusion``, …"""
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    nodes: tuple[str, ...]
    """Nodes of the graph that it is made of, sorted: the compiler lists them in any order."""

    @property
    def is_int8_gemm(self) -> bool:
        """Whether both factors are int8: a weight that is dequantised on the way has a float beside it."""
        return self.kind == "gemm" and self._count("Int8") >= 2

    @property
    def is_int8_plugin(self) -> bool:
        """Whether it is our plugin of int8 experts, by its two matrices: the kernel rounds what they are multiplied by (engines/cpp/kernels)."""
        return self.kind == PLUGIN and self._count("Int8") == 2

    def _count(self, dtype: str) -> int:
        return [operand.dtype for operand in (*self.inputs, *self.constants)].count(dtype)


def parse_layers(dump: str) -> Iterator[Layer]:
    """The layers of all profiles and compute capabilities, in order."""
    for found in LAYER.finditer(dump):
        yield Layer(found["name"], found["kind"], *(tuple(_operands(found[part])) for part in PARTS), tuple(sorted(set(NODE.findall(found["rest"])))))


def _operands(text: str) -> Iterator[Operand]:
    for found in OPERAND.finditer(text):
        yield Operand(found["name"], tuple(int(dim) for dim in found["dims"].split(",") if dim), found["dtype"], found["layout"])


def int8_gemms(dump: str) -> int:
    """How many products have two int8 factors: counted once per profile and compute capability that was built for."""
    return sum(layer.is_int8_gemm for layer in parse_layers(dump))


def epilogues(dump: str) -> list[set[tuple[int, ...]]]:
    """For each int8 product, the dimensions of the constants in the layers that read it: its scales are among them."""
    layers = list(parse_layers(dump))
    made = [{operand.name for operand in layer.outputs} for layer in layers if layer.is_int8_gemm]
    return [{constant.dims for layer in layers if names & {operand.name for operand in layer.inputs} for constant in layer.constants} for names in made]
