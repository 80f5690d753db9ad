"""The layers that TensorRT's compiler emitted, as it logs them: what each computes of the graph, and the constants that the plan holds for it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

from .int8_layers import PLUGIN, Layer, Operand, parse_layers

LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*),", re.MULTILINE)
SERIAL = re.compile(r"(?<=__mye)\d+")
"""A counter of the compiler's, which differs from build to build."""
PROGRAM = re.compile(r"_myl(\d+)(?=_\d+$|$)")
"""Each profile is compiled to a program of its own."""
PROFILE = re.compile(r" \[profile \d+\]")
AS_STORED = re.compile(r"^(?P<weight>.+)_constant[A-Z]\w*$")
"""A constant that is a tensor of the graph as it was given, not something folded from it."""
BITS = {"Float": 32, "Half": 16, "BFloat16": 16, "Int64": 64, "Int32": 32, "Int8": 8, "UInt8": 8, "Int4": 4, "Bool": 8, "FP8": 8}
PRODUCTS = ("gemm", "runtime_fusion", PLUGIN)
"""Kinds of layers that multiply matrices."""


@dataclass(frozen=True)
class Constant:
    """What a plan holds for a layer."""

    dtype: str
    """As the compiler names it."""
    dims: tuple[int, ...]
    weight: str | None = None
    """The tensor of the graph that it is, where it was taken as given."""

    @property
    def bytes(self) -> int:
        return prod(self.dims) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Emitted:
    """One of ``<launch>.layers.json``: a layer that the compiler emitted."""

    name: str
    type: str
    program: int = 0
    """Which profile it was compiled for."""
    nodes: tuple[str, ...] = ()
    """Nodes of the graph that it is made of, sorted."""
    operands: tuple[str, ...] = ()
    """Of a product: dtype and dimensions of what it reads; -1 for what a profile leaves open."""
    holds: tuple[Constant, ...] = ()
    """Constants of more than one value that no layer before it reads: each is in the plan once."""
    factors: str | None = None
    """``int8`` for a product of two int8 factors."""


def read_layers(dump: str) -> Iterator[Emitted]:
    """In the compiler's order, which is the same in each build: each profile has layers of its own."""
    known = {layer.name: layer for layer in parse_layers(dump)}
    readers = _readers(known.values())
    held = Held()
    for found in LAYER.finditer(dump):
        layer, name = known.get(found["name"]), SERIAL.sub("", found["name"])
        if layer is None:
            yield Emitted(name, found["type"])
            continue
        program = _program(layer.name)
        nodes = layer.nodes or tuple(sorted({node for output in layer.outputs for node in readers.get(output.name, ())}))
        new = [constant for constant in layer.constants if prod(constant.dims) > 1 and held.is_new(constant, nodes, program)]
        yield Emitted(
            name,
            found["type"],
            program,
            nodes,
            operands=tuple(sorted(map(_text, (*layer.inputs, *layer.constants)))) if found["type"] in PRODUCTS else (),
            holds=tuple(sorted(map(_constant, new), key=lambda one: (one.dims, one.dtype, one.weight or ""))),
            factors="int8" if layer.is_int8_gemm or layer.is_int8_plugin else None,
        )


def _program(name: str) -> int:
    found = PROGRAM.search(name)
    return int(found[1]) if found else 0


def _readers(layers: Iterable[Layer]) -> dict[str, list[str]]:
    """Value → nodes of the layers that read it: a layer that only lays out a constant names no node of its own."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for operand in layer.inputs:
            found.setdefault(operand.name, []).extend(layer.nodes)
    return found


def _text(operand: Operand) -> str:
    return f"{operand.dtype}[{','.join(map(str, operand.dims))}]"


def _constant(operand: Operand) -> Constant:
    found = AS_STORED.match(_plain(operand.name))
    return Constant(operand.dtype, operand.dims, found["weight"] if found else None)


def _plain(name: str) -> str:
    return PROFILE.sub("", PROGRAM.sub("", name))


@dataclass
class Held:
    """Which constants were met: by name, and where programs name one apart, by what reads it and how it lies.

    A plan stores equal bytes once; profiles that lay out a weight alike do share it, though the log names it twice.
    """

    names: set[str] = field(default_factory=set)
    programs: dict[tuple, list[set[int]]] = field(default_factory=dict)
    """What reads a constant and how it lies → for each such constant, the programs that have it."""

    def is_new(self, constant: Operand, nodes: tuple[str, ...], program: int) -> bool:
        name = _plain(constant.name)
        if name in self.names:
            return False
        self.names.add(name)
        alike = self.programs.setdefault((nodes, constant.dtype, constant.dims, constant.layout), [])
        other = next((having for having in alike if program not in having), None)
        if other is None:
            alike.append({program})
        else:
            other.add(program)
        return other is None


def int8_everywhere(layers: tuple[Emitted, ...], node: str) -> bool:
    """Whether every profile computes ``node`` as a product of int8 factors."""
    return {layer.program for layer in layers} == {layer.program for layer in layers if layer.factors and node in layer.nodes}


def computing(layers: tuple[Emitted, ...], node: str) -> tuple[Emitted, ...]:
    """The products that ``node`` became, or is part of."""
    return tuple(layer for layer in layers if layer.type in PRODUCTS and node in layer.nodes)


__all__ = ["Constant", "Emitted", "Layer", "computing", "int8_everywhere", "read_layers"]
