"""What a graph's inputs and outputs are to whoever runs it: states, which stay where they are, and values, which come and go."""

from collections.abc import Iterable, Iterator
from typing import Any

from exporter.plan.manifest import Assembly
from exporter.plan.schedule import AllGather, AllReduce
from exporter.plan.signature import SELECTED, TOKENS, Signature, Tensor

Shapes = tuple[tuple[int, ...], ...]
"""Of a run's inputs, in the signature's order, without states."""


class States(dict[str, Any]):
    """A cache's buffers by the names of what reads them. :param whole: those of the cache of which these are some rows."""

    def __init__(self, buffers: Iterable[tuple[str, Any]], whole: "States | None" = None) -> None:
        super().__init__(buffers)
        self.within = whole

    @property
    def whole(self) -> "States":
        """The same for all rows of one cache."""
        return self if self.within is None else self.within


class Ports:
    """A signature, sorted."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.states = {state.input: state.output for state in signature.states}
        """Input → output of what is read and written in place."""
        self.inputs = [tensor for tensor in signature.inputs if tensor.name not in self.states]
        self.results = [tensor for tensor in signature.outputs if tensor.name not in self.states.values()]

    def sizes(self, shapes: Shapes) -> dict[int | str, int]:
        """Symbolic dimension → its size, of inputs of these shapes."""
        return {dim: size for tensor, shape in zip(self.inputs, shapes, strict=True) for dim, size in zip(tensor.shape, shape, strict=True)}


def shape_of(tensor: Tensor, sizes: dict[int | str, int]) -> tuple[int | str, ...]:
    """The shape with all that is known of it."""
    return tuple(sizes.get(dim, dim) for dim in tensor.shape)


def is_one_token(sizes: dict[int | str, int]) -> bool:
    """Whether a step is of one token a row, as decoding goes."""
    return max(sizes.get(TOKENS, 1), sizes.get(SELECTED, 1)) == 1


def hosted(assembly: Assembly) -> Iterator[str]:
    """Results that the host reads: logits, and what other ranks get."""
    yield "logits"
    yield from assembly.sent
    for step in assembly.steps:
        if isinstance(step, AllReduce | AllGather):
            yield step.value
