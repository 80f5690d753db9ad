"""One graph of one rank, opened on ONNX Runtime: values in by name, values out by name, caches in place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import LoadError
from exporter.plan.signature import Signature

if TYPE_CHECKING:
    import numpy as np

AS_WRITTEN = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Session configuration: weight-only products compute in float32 rather than with activations of their own quantisation."""
LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
"""``graph_optimization_level`` in an engine's options → ONNX Runtime's name for it."""


def onnxruntime() -> Any:
    """The one door to ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as cause:
        raise LoadError(f"running engines needs onnxruntime, which cannot be imported: {cause}.", hint="pip install 'moetrt[ort]'") from cause
    return onnxruntime


class Session:
    """A graph that runs on ONNX Runtime.

    :param path: the graph's file; or the graph itself, whose weights lie where ``options`` say.
    :param threads: threads within one operator.
    :param options: what the engine's manifest recorded (see ``engines.backends.ort``); defaults for portable graphs.
    """

    def __init__(self, path: Path | bytes, signature: Signature, threads: int, options: dict[str, Any] | None = None) -> None:
        ort, options = onnxruntime(), options or {}
        self.signature = signature
        self.session = _open(ort, path, threads, options)
        self.states = {state.input: state.output for state in signature.states}
        self.results = [tensor.name for tensor in signature.outputs if tensor.name not in self.states.values()]

    def run(self, values: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name, as OrtValues.

        :param values: OrtValues by name; those that the graph does not read are left alone.
        :param states: buffers by input name; each is read and written in place.
        """
        binding = self.session.io_binding()
        for tensor in self.signature.inputs:
            if tensor.name in self.states:
                binding.bind_ortvalue_input(tensor.name, states[tensor.name])
                binding.bind_ortvalue_output(self.states[tensor.name], states[tensor.name])
            else:
                binding.bind_ortvalue_input(tensor.name, values[tensor.name])
        for name in self.results:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        return dict(zip(self.results, binding.get_outputs()[len(self.states) :], strict=True))


def _open(ort: Any, path: Path | bytes, threads: int, options: dict[str, Any]) -> Any:
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = 3
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[options.get("graph_optimization_level", "all")])
    for key, value in options.get("config", {}).items():
        made.add_session_config_entry(key, str(value))
    try:
        return ort.InferenceSession(path if isinstance(path, bytes) else str(path), made, providers=options.get("providers", ["CPUExecutionProvider"]))
    except Exception as cause:  # ONNX Runtime's exceptions share no base of their own
        raise LoadError(f"ONNX Runtime cannot open {'a graph' if isinstance(path, bytes) else path}: {cause}", hint="bf16 graphs build for TensorRT; on a CPU export with --precision fp32.") from cause


def value_of(array: "np.ndarray") -> Any:
    """An OrtValue over the array's own memory."""
    import numpy as np

    return onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def zeros(shape: tuple[int, ...], dtype: str) -> Any:
    import numpy as np

    return value_of(np.zeros(shape, dtype))
