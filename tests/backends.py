"""How the tests run one op or one small graph on each backend."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from suites.ops import OpCase

from exporter.errors import BuildError
from exporter.ops import DOMAIN, OPS, OPSET, VERSION, bodies


def case_model(case: OpCase, dynamic: bool = True) -> onnx.ModelProto:
    """A graph of the case's single node, with its function body; tokens are symbolic, weights are initializers."""
    op, arrays = OPS[case.op], case.inputs()
    names = op.inputs[: len(arrays)]
    fixed = {"bias", "gate_up", "down", "gate_up_scale", "down_scale", "x_scale", "h_scale"}
    node = helper.make_node(case.op, names, op.outputs, name="/op", domain=DOMAIN, **case.attributes)
    graph = helper.make_graph(
        [node],
        "case",
        [_value(name, array, dynamic) for name, array in zip(names, arrays, strict=True) if name not in fixed],
        _outputs(case, arrays, dynamic),
        [tensor(name, array) for name, array in zip(names, arrays, strict=True) if name in fixed],
    )
    return make_model(graph)


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model of this graph, with the bodies of our ops and nothing else."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)], ir_version=11)
    model.functions.extend(bodies(graph.node))
    return model


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def _value(name: str, array: np.ndarray, dynamic: bool) -> onnx.ValueInfoProto:
    shape = ("tokens", *array.shape[1:]) if dynamic else array.shape
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def _outputs(case: OpCase, arrays: tuple[np.ndarray, ...], dynamic: bool) -> list[onnx.ValueInfoProto]:
    op = OPS[case.op]
    shapes = op.shapes(*(("tokens", *array.shape[1:]) if dynamic else array.shape for array in arrays), **case.attributes)
    kinds = [_output_type(case.op, name, arrays) for name in op.outputs]
    return [helper.make_tensor_value_info(*value) for value in zip(op.outputs, kinds, shapes, strict=True)]


def _output_type(op: str, name: str, arrays: tuple[np.ndarray, ...]) -> int:
    if name == "experts":
        return onnx.TensorProto.INT64
    return onnx.TensorProto.FLOAT if op == "Route" else helper.np_dtype_to_tensor_dtype(arrays[0].dtype)


def run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray], as_written: bool = False, library: Path | None = None, threads: int = 1) -> list[np.ndarray]:
    """:param as_written: without ONNX Runtime's optimisations, of which some round activations.
    :param library: of our ops."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})


def optimized_by_onnxruntime(model: onnx.ModelProto, folder: Path) -> list[onnx.NodeProto]:
    """The nodes that ONNX Runtime makes of the model for this CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # or else it warns that the file is for this machine alone
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(onnx.load(folder / "optimized.onnx").graph.node)


def run_torch(case: OpCase) -> list[np.ndarray]:
    """The case through ``torch.ops.moetrt``."""
    import torch

    from exporter.ops import torch_ops  # noqa: F401  (registers the ops)

    names = {"Route": "route", "Experts": "experts", "AllReduce": "all_reduce", "AllGather": "all_gather"}
    arrays = [to_torch(array) for array in case.inputs()]
    arrays += [None] * (case.op == "Route" and len(arrays) == 1)
    attributes = [value for key, value in case.attributes.items() if key != "axis"]
    outputs = getattr(torch.ops.moetrt, names[case.op])(*arrays, *attributes)
    return [from_torch(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def to_torch(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def from_torch(value: Any) -> np.ndarray:
    import torch

    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


@cache
def tensorrt_rtx() -> tuple[Any, Any]:
    """The module and the process's one logger, or a printed skip."""
    import pytest

    from engines.backends.tensorrt import library, log_of

    try:
        return library("tensorrt-rtx"), log_of("tensorrt-rtx")
    except BuildError as error:
        return pytest.skip(str(error))


def parse(model: onnx.ModelProto) -> tuple[Any, list[str]]:
    """TensorRT-RTX's network of the model, and what its parser has against it: nothing, if the list is empty."""
    trt, logger = tensorrt_rtx()
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parser.parse(model.SerializeToString())
    return network, [parser.get_error(number).desc() for number in range(parser.num_errors)]


def layers_of(model: onnx.ModelProto, lengths: tuple[int, int, int]) -> str:
    """The compiler's dump of layers for the model, built for one GPU generation and for these numbers of tokens."""
    trt, log = tensorrt_rtx()
    log.clear()
    network, faults = parse(model)
    assert not faults
    builder = network.builder
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for value in (network.get_input(number) for number in range(network.num_inputs)):
        profile.set_shape(value.name, *([length if dim < 0 else dim for dim in value.shape] for length in lengths))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors
    return log.layers


def feeds_of(case: OpCase) -> dict[str, np.ndarray]:
    return dict(zip(OPS[case.op].inputs, case.inputs(), strict=False))


def as_list(outputs: np.ndarray | Iterable[np.ndarray]) -> list[np.ndarray]:
    return [outputs] if isinstance(outputs, np.ndarray) else list(outputs)
