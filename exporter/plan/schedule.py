"""What one rank does in a step of the model: a tuple of frozen actions that a chain walks in order."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Launch:
    """Run a graph. Its inputs and outputs go by the names in its signature."""

    graph: str
    kind: Literal["launch"] = "launch"


@dataclass(frozen=True)
class AllReduce:
    """Sum ``value`` over the tensor ranks of this stage, in rank order, into ``result``."""

    value: str
    result: str
    kind: Literal["all_reduce"] = "all_reduce"


@dataclass(frozen=True)
class AllGather:
    """Concatenate ``value`` over the tensor ranks of this stage, in rank order, along the last axis."""

    value: str
    result: str
    kind: Literal["all_gather"] = "all_gather"


@dataclass(frozen=True)
class Send:
    """Hand ``values`` to the same tensor rank of the next stage."""

    values: tuple[str, ...]
    kind: Literal["send"] = "send"


@dataclass(frozen=True)
class Receive:
    """Take ``values`` from the same tensor rank of the stage before."""

    values: tuple[str, ...]
    kind: Literal["receive"] = "receive"


Step = Launch | AllReduce | AllGather | Send | Receive
