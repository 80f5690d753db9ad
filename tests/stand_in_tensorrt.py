"""What stands for ``tensorrt`` where there is no GPU: it parses ONNX, "builds" by keeping the graph, and runs it by ONNX Runtime on a CPU.

A plan is the lowered graph with its weights and the profiles that it was built with. It computes in memory of :mod:`.stand_in_cuda`
alone, from the addresses that it is bound to, when its stream gets there: a wrong address, shape, profile or order is a wrong
number or a :class:`~stand_in_cuda.Fault`. It knows nothing of kernels, of GPU generations, of what a real library would refuse.
"""

import pickle
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from stand_in_cuda import Cuda

from exporter.checkpoint.layout import Reference

SCRATCH_BYTES = 4096


class DataType(Enum):
    FLOAT, HALF, BF16, INT64, BOOL = range(5)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ProfilingVerbosity(Enum):
    DETAILED = 2


class BuilderFlag(Enum):
    TF32 = 0


class LayerType(Enum):
    CONSTANT, MATRIX_MULTIPLY, QUANTIZE, DEQUANTIZE, SHUFFLE, CAST, IDENTITY, UNSQUEEZE, SQUEEZE = range(9)


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


DTYPES = {1: (DataType.FLOAT, np.float32), 10: (DataType.HALF, np.float16), 7: (DataType.INT64, np.int64)}
"""ONNX's number of a type → ours, and numpy's."""


@dataclass
class Port:
    name: str
    mode: TensorIOMode
    dtype: DataType
    numpy: type
    shape: list[int | str]


@dataclass
class Plan:
    """What a plan's file holds."""

    model: bytes
    ports: list[Port]
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]]
    """Input → least, usual and most, of each profile."""


@dataclass
class Network:
    model: Any = None
    num_layers: int = 0

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, number: int) -> Any:
        return self.model.graph.input[number]


@dataclass
class Parser:
    network: Network
    log: Any
    num_errors: int = 0

    def parse(self, model: bytes, path: str) -> bool:
        import onnx

        self.network.model = onnx.load_from_string(model)
        for tensor in self.network.model.graph.initializer:
            if place := Reference.read(tensor):
                with (Path(path).parent / place.location).open("rb") as file:
                    file.seek(place.offset)
                    tensor.raw_data, tensor.data_location = file.read(place.bytes), onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
        return True


@dataclass
class Profile:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def set_shape(self, name: str, *bounds: list[int]) -> None:
        self.shapes[name] = tuple(map(tuple, bounds))


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def clear_flag(self, flag: BuilderFlag) -> None:
        """It computes in float32 as it is."""

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)


class Builder:
    def __init__(self, log: Any) -> None:
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        graph = network.model.graph
        ports = [_port(value, mode) for values, mode in ((graph.input, TensorIOMode.INPUT), (graph.output, TensorIOMode.OUTPUT)) for value in values]
        return pickle.dumps(Plan(network.model.SerializeToString(), ports, [profile.shapes for profile in config.profiles]))


def _port(value: Any, mode: TensorIOMode) -> Port:
    kind = value.type.tensor_type
    return Port(value.name, mode, *DTYPES[kind.elem_type], [dim.dim_param or dim.dim_value for dim in kind.shape.dim])


class TensorRt:
    """The module, over a world's devices.

    :param refuses: what it says of every plan, in its log, instead of opening it.
    """

    __name__, __version__ = "tensorrt", "11.0.0-stand-in"
    DataType, TensorIOMode, TensorLocation, LayerType = DataType, TensorIOMode, TensorLocation, LayerType
    ExecutionContextAllocationStrategy, ProfilingVerbosity = ExecutionContextAllocationStrategy, ProfilingVerbosity
    NetworkDefinitionCreationFlag, ILogger, IProgressMonitor = NetworkDefinitionCreationFlag, ILogger, IProgressMonitor
    Builder, OnnxParser, BuilderFlag = Builder, Parser, BuilderFlag

    def __init__(self, cuda: Cuda, refuses: str | None = None) -> None:
        self.cuda, self.refuses, self.takes_plugins = cuda, refuses, True
        self.engines: list[Engine] = []
        self.libraries: list[str] = []

    def Runtime(self, log: Any) -> "Runtime":
        return Runtime(self, log)


@dataclass
class Runtime:
    trt: TensorRt
    log: Any

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=self.load_library)

    def load_library(self, path: str) -> object | None:
        if not self.trt.takes_plugins:
            self.log.log(ILogger.ERROR, "it was built for another version")
            return None
        self.trt.libraries.append(path)
        return object()

    def deserialize_cuda_engine(self, plan: Any) -> "Engine | None":
        if self.trt.refuses:
            self.log.log(ILogger.ERROR, self.trt.refuses)
            return None
        engine = Engine(self.trt.cuda, self.log, pickle.loads(bytes(memoryview(plan))))
        self.trt.engines.append(engine)
        return engine


class Engine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, cuda: Cuda, log: Any, plan: Plan) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(plan.model, options, providers=["CPUExecutionProvider"])
        self.cuda, self.log, self.plan, self.device = cuda, log, plan, cuda.device
        self.ports = {port.name: port for port in plan.ports}
        self.num_io_tensors, self.num_optimization_profiles = len(plan.ports), len(plan.profiles)
        self.ran: list[tuple[int, dict[str, int]]] = []
        """Profile and addresses of each run."""

    def get_tensor_name(self, number: int) -> str:
        return self.plan.ports[number].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.ports[name].mode

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.ports[name].dtype

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self.plan.profiles[profile][name])

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> "Context":
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    """Complains as the library does: False, and a line in the log."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.cuda
        self.profile: int | None = None
        self.scratch = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def refuse(self, text: str) -> bool:
        self.engine.log.log(ILogger.ERROR, text)
        return False

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= SCRATCH_BYTES
        self.scratch = address

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.cuda.put(stream, lambda: setattr(self, "profile", profile))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            raise self.cuda.fault("a shape is set before a profile, or before the profile's stream was waited for")
        low, _, high = self.engine.plan.profiles[self.profile][name]
        if len(shape) != len(low) or not all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True)):
            return self.refuse(f"{name}: {shape} is not within profile {self.profile}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.ports:
            return self.refuse(f"there is no tensor {name}")
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name, port in self.engine.ports.items() if port.mode is TensorIOMode.INPUT and name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {dim: size for known, shape in self.shapes.items() for dim, size in zip(self.engine.ports[known].shape, shape, strict=True)}
        return tuple(sizes.get(dim, dim) for dim in self.engine.ports[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        lacking = [name for name in self.engine.ports if name not in self.addresses] + self.infer_shapes()
        if lacking:
            return self.refuse(f"no address or no shape of {lacking}")
        if self.cuda.device != self.engine.device:
            raise self.cuda.fault(f"an engine of device {self.engine.device} runs on device {self.cuda.device}")
        shapes, addresses = {name: self.get_tensor_shape(name) for name in self.engine.ports}, dict(self.addresses)
        self.cuda.put(stream, lambda: self.compute(shapes, addresses))
        return True

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine, device = self.engine, self.engine.device
        self.cuda.locate(self.scratch, SCRATCH_BYTES, device)[:] = 0x5C

        def place(port: Port) -> np.ndarray:
            size = int(np.prod(shapes[port.name])) * np.dtype(port.numpy).itemsize
            return self.cuda.locate(addresses[port.name], size, device).view(port.numpy).reshape(shapes[port.name])

        given = {port.name: place(port).copy() for port in engine.plan.ports if port.mode is TensorIOMode.INPUT}
        results = [port for port in engine.plan.ports if port.mode is TensorIOMode.OUTPUT]
        for port, made in zip(results, engine.session.run([port.name for port in results], given), strict=True):
            place(port)[...] = made
        engine.ran.append((self.profile, addresses))
