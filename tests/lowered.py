"""A model lowered as an engine would have it, the tensors that its kernels want made and put in."""

import backends
import numpy as np
import onnx
from onnx import TensorProto

from exporter.lowering import Asks, Derived, lower, unknown
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Lowering


def with_derived(model: onnx.ModelProto, capabilities: Capabilities, fast: bool = False, is_bfloat16: Asks = unknown) -> tuple[onnx.ModelProto, tuple[Lowering, ...]]:
    derived: dict[str, Derived] = {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    lowered, records = lower(model, capabilities, derived, fast, is_bfloat16)
    for tensor in lowered.graph.initializer:
        if tensor.name in derived:
            made = derived[tensor.name]
            array = np.concatenate([piece.ravel() for piece in made.make(*(_as_stored(stored[name]) for name in made.sources))]).reshape(made.shape)
            tensor.CopyFrom(backends.tensor(tensor.name, array))
    return lowered, records


def _as_stored(tensor: onnx.TensorProto) -> np.ndarray:
    """As a weights file holds it: of 4 bits two in a byte."""
    if tensor.data_type != TensorProto.INT4:
        return onnx.numpy_helper.to_array(tensor)
    return np.frombuffer(tensor.raw_data, np.uint8).reshape(*tensor.dims[:-1], tensor.dims[-1] // 2)
