"""What goes into a graph and what comes out: names, dtypes and shapes, symbolic where they vary."""

from dataclasses import dataclass

BATCH, TOKENS, CONTEXT, SELECTED = "batch", "tokens", "context", "selected"
"""The symbolic dimensions: rows, new tokens a row, cache positions a row, positions whose logits are wanted."""


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph."""

    name: str
    dtype: str
    """``float32``, ``float16``, ``bfloat16`` or ``int64``."""
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class State:
    """A buffer that a graph reads and writes in place: bind one buffer to ``input`` and to ``output``."""

    input: str
    output: str


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...] = ()

    @property
    def state_inputs(self) -> tuple[Tensor, ...]:
        wanted = {state.input for state in self.states}
        return tuple(tensor for tensor in self.inputs if tensor.name in wanted)
