"""A whole rank on a CUDA device: a step of one token is captured as a CUDA graph and replayed.

A token costs a GPU less time than the host needs to launch its kernels one by one. Replayed, they are launched at once; what a
captured step reads and writes has to stay where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.plan.signature import Signature

from .ports import Shapes, is_one_token
from .session import CUDA, Prepared, Session, onnxruntime, providers_of, zeros

GRAPH_ID = "gpu_graph_id"
EAGER = "-1"
"""ONNX Runtime's id for runs that are not captured."""


@dataclass(frozen=True)
class Captured(Prepared):
    """A shape of step that is replayed: its inputs have places of their own, and a graph its number."""

    inputs: dict[str, Any]
    run_options: Any


def captures(options: dict[str, Any]) -> bool:
    """Whether an engine's sessions are opened for capturing."""
    first = providers_of(options)[0]
    return not isinstance(first, str) and first[0] == CUDA and first[1].get("enable_cuda_graph") == "1"


class CapturingSession(Session):
    """A :class:`Session` whose steps of one token are replayed; longer ones run kernel by kernel."""

    def __init__(self, path: Path | bytes, signature: Signature, threads: int, options: dict[str, Any]) -> None:
        super().__init__(path, signature, threads, options)
        self.graphs = 0

    def start(self, step: Prepared, values: dict[str, Any], options: Any = None) -> None:
        if not isinstance(step, Captured):
            super().start(step, values, _options(EAGER))
            return
        for name, value in step.inputs.items():
            value.update_inplace(values[name].numpy())
        self.session.run_with_iobinding(step.binding, step.run_options)

    def prepare(self, shapes: Shapes, states: dict[str, Any]) -> Prepared:
        made = super().prepare(shapes, states)
        if made.results is None or not is_one_token(self.sizes(shapes)):
            return made
        inputs = {tensor.name: zeros(shape, tensor.dtype, self.device) for tensor, shape in zip(self.inputs, shapes, strict=True)}
        for name, value in inputs.items():
            made.binding.bind_ortvalue_input(name, value)
        self.graphs += 1
        return Captured(made.binding, made.results, states, inputs, _options(str(self.graphs)))


def _options(graph: str) -> Any:
    made = onnxruntime().RunOptions()
    made.add_run_config_entry(GRAPH_ID, graph)
    return made
