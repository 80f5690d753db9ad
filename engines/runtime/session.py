"""One graph of one rank, opened on ONNX Runtime: values in by name, values out by name, caches in place."""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import LoadError
from exporter.plan.signature import Signature

from .device import Buffer, numpy_type
from .ports import Ports, Shapes, States, shape_of

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
AS_WRITTEN = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Session configuration: weight-only products compute in float32 rather than with activations of their own quantisation."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Session configuration: where the weights of a graph lie that is no file itself."""
KEPT = 16
"""Runs of one cache whose buffers are kept, by shapes and rows: beyond that, the one that was longest ago is let go."""
CUDA = "CUDAExecutionProvider"
LIBRARY = "library"
"""In an engine's options once it is loaded: the path of the library of ops that its graphs need."""
LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
"""``graph_optimization_level`` in an engine's options → ONNX Runtime's name for it."""


def onnxruntime() -> Any:
    """The one door to ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as cause:
        raise LoadError(f"running engines needs onnxruntime, which cannot be imported: {cause}.", hint="pip install 'moetrt[ort]'") from cause
    return onnxruntime


@dataclass(frozen=True)
class Prepared:
    """What a run of one shape is bound to, from run to run."""

    binding: Any
    results: dict[str, Any] | None
    """Buffers by name; None where a result's shape is known only after the run."""
    states: dict[str, Any]
    """Held, so that no other rows are taken for these."""


class Session(Ports):
    """A graph that runs on ONNX Runtime.

    :param path: the graph's file; or the graph itself, whose weights lie where ``options`` say.
    :param threads: threads within one operator.
    :param options: what the engine's manifest recorded (see ``engines.backends.ort``); defaults for portable graphs.
    :param hosted: results that are read by the host; others stay where they are made.
    """

    def __init__(self, path: Path | bytes, signature: Signature, threads: int, options: dict[str, Any] | None = None, hosted: Collection[str] = ()) -> None:
        ort, options = onnxruntime(), options or {}
        super().__init__(signature)
        self.device = device_of(options)
        self.session = _open(ort, path, threads, options)
        self.places = {tensor.name: "cpu" if tensor.name in hosted else self.device for tensor in self.results}
        self.prepared: dict[tuple[int, Shapes], Prepared] = {}
        """By the identity of the states, which are of one cache, and by shapes; the latest last."""
        self.bound: dict[str, Any] | None = None

    def run(self, values: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name, as OrtValues: the next run of the same shape writes over them.

        :param values: OrtValues by name; those that the graph does not read are left alone.
        :param states: buffers by input name; each is read and written in place.
        """
        whole = states.whole if isinstance(states, States) else states
        if self.bound is not whole:
            self.prepared, self.bound = {}, whole
        shapes = tuple(tuple(values[tensor.name].shape()) for tensor in self.inputs)
        step = self.prepared.pop((id(states), shapes), None) or self.prepare(shapes, states)
        self.prepared[id(states), shapes] = step
        if len(self.prepared) > KEPT:
            del self.prepared[next(iter(self.prepared))]
        self.start(step, values)
        if step.results is not None:
            return step.results
        made = step.binding.get_outputs()[len(self.states) :]
        return {tensor.name: value for tensor, value in zip(self.results, made, strict=True)}

    def start(self, step: Prepared, values: dict[str, Any], options: Any = None) -> None:
        """Run once, in what was prepared. :param options: ONNX Runtime's ``RunOptions``."""
        for tensor in self.inputs:
            step.binding.bind_ortvalue_input(tensor.name, values[tensor.name])
        if step.results is None:
            for name, device in self.places.items():
                step.binding.bind_output(name, device)
        self.session.run_with_iobinding(step.binding, options)

    def prepare(self, shapes: Shapes, states: dict[str, Any]) -> Prepared:
        """Buffers and bindings of runs of one shape."""
        binding = self.session.io_binding()
        for name, result in self.states.items():
            self.bind_state(binding, name, result, states[name])
        sizes = self.sizes(shapes)
        wanted = {tensor.name: shape_of(tensor, sizes) for tensor in self.results}
        if not all(tensor.dtype and all(isinstance(dim, int) for dim in wanted[tensor.name]) for tensor in self.results):
            return Prepared(binding, None, states)
        results = {tensor.name: zeros(wanted[tensor.name], tensor.dtype, self.places[tensor.name]) for tensor in self.results}
        for name, value in results.items():
            binding.bind_ortvalue_output(name, value)
        return Prepared(binding, results, states)

    def bind_state(self, binding: Any, name: str, result: str, state: Any) -> None:
        """To one buffer: an OrtValue, or a device's memory by its address."""
        if isinstance(state, Buffer):
            place = (self.device, 0, numpy_type(state.dtype).type, state.sizes, state.address)
            binding.bind_input(name, *place)
            binding.bind_output(result, *place)
        else:
            binding.bind_ortvalue_input(name, state)
            binding.bind_ortvalue_output(result, state)


def device_of(options: dict[str, Any]) -> str:
    """Where an engine's values lie, as ONNX Runtime names it."""
    first = providers_of(options)[0]
    return "cuda" if CUDA in (first, first[0]) else "cpu"


def providers_of(options: dict[str, Any]) -> list[str | tuple[str, dict[str, Any]]]:
    """ONNX Runtime's execution providers, the preferred first: a name, or a name and its options."""
    return [one if isinstance(one, str) else (one[0], one[1]) for one in options.get("providers", ["CPUExecutionProvider"])]


def _open(ort: Any, path: Path | bytes, threads: int, options: dict[str, Any]) -> Any:
    providers = providers_of(options)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in ort.get_available_providers():
        raise LoadError(f"these engines run on ONNX Runtime's {wanted}, which this onnxruntime {ort.__version__} does not have.", hint="pip install 'moetrt[ort-cuda]' on a machine with a CUDA device, or build with --backend ort.")
    made = ort.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = threads, 1
    made.log_severity_level = 3
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[options.get("graph_optimization_level", "all")])
    if library := options.get(LIBRARY):
        _add_ops(ort, made, library)
    for key, value in options.get("config", {}).items():
        made.add_session_config_entry(key, str(value))
    if wanted == CUDA:
        ort.preload_dlls()
    began = time.perf_counter()
    try:
        opened = ort.InferenceSession(path if isinstance(path, bytes) else str(path), made, providers=providers)
    except Exception as cause:  # ONNX Runtime's exceptions share no base of their own
        raise LoadError(f"ONNX Runtime cannot open {'a graph' if isinstance(path, bytes) else path}: {cause}", hint="bf16 graphs build for TensorRT; on a CPU export with --precision fp32.") from cause
    log.debug("opened %s on %s with %d thread(s) in %.2f s", "a graph in memory" if isinstance(path, bytes) else path, wanted, threads, time.perf_counter() - began)
    return opened


def _add_ops(ort: Any, options: Any, library: str) -> None:
    try:
        options.register_custom_ops_library(library)
    except Exception as cause:  # ONNX Runtime's exceptions share no base of their own
        raise LoadError(
            f"ONNX Runtime {ort.__version__} does not take the ops of {library}: {cause}",
            hint="Give an ONNX Runtime that is as new as the headers that the library was compiled with.",
        ) from cause


def value_of(array: "np.ndarray") -> Any:
    """An OrtValue over the array's own memory."""
    import numpy as np

    return onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def zeros(shape: tuple[int, ...], dtype: str, device: str = "cpu") -> Any:
    """Memory of a chain's own. :param dtype: as a signature names it."""
    import numpy as np

    made = np.zeros(shape, dtype)
    return value_of(made) if device == "cpu" else onnxruntime().OrtValue.ortvalue_from_numpy(made, device, 0)
