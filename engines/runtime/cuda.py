"""A whole rank on a CUDA device: a step of one token is captured as a CUDA graph and replayed.

A token costs a GPU less time than the host needs to launch its kernels one by one. Replayed, they are launched at once; what a
captured step reads and writes has to stay where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.plan.signature import SELECTED, TOKENS, Signature

from .session import CUDA, Session, onnxruntime, providers_of

GRAPH_ID = "gpu_graph_id"
EAGER = "-1"
"""ONNX Runtime's id for runs that are not captured."""


@dataclass(frozen=True)
class Captured:
    """One shape of step: where its inputs and results lie."""

    run_options: Any
    binding: Any
    inputs: dict[str, Any]
    results: dict[str, Any]


def captures(options: dict[str, Any]) -> bool:
    """Whether an engine's sessions are opened for capturing."""
    first = providers_of(options)[0]
    return not isinstance(first, str) and first[0] == CUDA and first[1].get("enable_cuda_graph") == "1"


class CapturingSession(Session):
    """A :class:`Session` whose steps of one token are replayed; longer ones run kernel by kernel."""

    def __init__(self, path: Path | bytes, signature: Signature, threads: int, options: dict[str, Any]) -> None:
        super().__init__(path, signature, threads, options)
        self.captured: dict[tuple[tuple[int, ...], ...], Captured] = {}
        self.made = 0
        self.run_options = self._options(EAGER)
        self.steps = {tensor.name for tensor in signature.inputs if TOKENS in tensor.shape or SELECTED in tensor.shape}

    def run(self, values: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
        shapes = {name: tuple(values[name].shape()) for name in self.inputs}
        if any(shapes[name][1] > 1 for name in self.steps):
            return super().run(values, states)
        if self.bound is not states:
            self._bind(states)
        key = tuple(shapes.values())
        if key not in self.captured:
            self.captured[key] = self._prepare(values, states, shapes)
        step = self.captured[key]
        for name, value in step.inputs.items():
            value.update_inplace(values[name].numpy())
        self.session.run_with_iobinding(step.binding, step.run_options)
        return step.results

    def _bind(self, states: dict[str, Any]) -> None:
        super()._bind(states)
        self.captured = {}

    def _prepare(self, values: dict[str, Any], states: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Captured:
        import numpy as np

        make = onnxruntime().OrtValue.ortvalue_from_numpy
        sizes = {dim: size for tensor in self.signature.inputs if tensor.name in shapes for dim, size in zip(tensor.shape, shapes[tensor.name], strict=True)}
        inputs = {name: make(values[name].numpy(), self.device, 0) for name in self.inputs}
        results = {
            tensor.name: make(np.zeros([sizes.get(dim, dim) for dim in tensor.shape], tensor.dtype), self.device, 0)
            for tensor in self.signature.outputs
            if tensor.name in dict(self.results)
        }
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, result in self.states.items():
            binding.bind_ortvalue_input(name, states[name])
            binding.bind_ortvalue_output(result, states[name])
        for name, value in results.items():
            binding.bind_ortvalue_output(name, value)
        self.made += 1
        return Captured(self._options(str(self.made)), binding, inputs, results)

    @staticmethod
    def _options(graph: str) -> Any:
        made = onnxruntime().RunOptions()
        made.add_run_config_entry(GRAPH_ID, graph)
        return made
