"""One plan of one rank on its device, run by TensorRT or TensorRT-RTX: values in by name, values out by name, caches in place.

A context serves one profile. All contexts of a plan share their scratch memory, since they run one after another. A step of one
token is captured as a CUDA graph once it has run, and anew when what it is bound to changes.
"""

import mmap
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import LoadError, MoetrtError, RunError
from exporter.plan.signature import Signature, Tensor

from ..backends.plugins import give
from ..backends.tensorrt import library, log_of
from .device import Buffer, HostValue, Replay, Stream, numpy_type, select
from .ports import Ports, Shapes, is_one_token, shape_of

KEPT = 8
"""Shapes of run whose buffers are kept: beyond that, none is."""
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
"""dtype as a signature names it → the library's name for it."""
LOW, HIGH = 0, 2
"""Of the three shapes that a profile has of each input."""
BUILD_HERE = "Engines run on the GPU generation and the version of the library that they were built with and for; build them here."


@dataclass
class Step:
    """What a run of one shape is bound to, from run to run."""

    profile: int
    shapes: dict[str, tuple[int, ...]]
    """Of values and states that go in."""
    inputs: dict[str, Buffer]
    results: dict[str, Buffer]
    hosted: dict[str, HostValue]
    """What the host gets of the results."""
    one_token: bool
    captures: bool = True
    """Until it turns out that the library cannot."""

    @property
    def buffers(self) -> dict[str, Buffer]:
        return self.inputs | self.results


@dataclass
class Context:
    """A plan's context for one profile; takes one step's shapes and addresses at a time."""

    context: Any
    step: Step | None = None
    states: dict[str, Buffer] = field(default_factory=dict)
    ran: bool = False
    """Since it was bound: the library readies itself in the first run."""
    replay: Replay | None = None
    """That run, captured."""


class TensorRtSession(Ports):
    """A plan that runs.

    :param path: the plan's file, which is read as it is looked at.
    :param hosted: results that are read by the host; others stay on the device.
    :param plugins: the library of kernels that the plan needs.
    :raises LoadError: the library refuses the plan, or it is not as its signature says.
    """

    def __init__(self, backend: str, path: Path, signature: Signature, device: int, hosted: Collection[str] = (), plugins: Path | None = None) -> None:
        super().__init__(signature)
        self.backend, self.where, self.device, self.hosted = backend, str(path), device, frozenset(hosted)
        self.trt, self.log = library(backend), log_of(backend)
        select(device)
        self.stream = Stream(device)
        self.runtime = self._runtime(plugins)
        self.engine = self._deserialise(path)
        self.names = {self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)}
        for tensors, mode in ((signature.inputs, "INPUT"), (signature.outputs, "OUTPUT")):
            for tensor in tensors:
                self._require(tensor, mode)
        told, there = len(signature.inputs) + len(signature.outputs), len(self.names)
        if told != there:
            raise LoadError(f"{path} has {there} inputs and outputs, its manifest {told}.", hint="Build it again.")
        room = self.engine.device_memory_size_v2
        self.scratch = Buffer(device, (room,), "uint8") if room else None
        self.contexts = [self._context(profile) for profile in range(self.engine.num_optimization_profiles)]
        self.steps: dict[Shapes, Step] = {}

    def run(self, values: dict[str, Any], states: dict[str, Buffer]) -> dict[str, Any]:
        """Outputs by name, on the host where they are hosted: the next run of the same shape writes over them.

        :param values: by name; those that the plan does not read are left alone.
        :param states: buffers by input name; each is read and written in place.
        """
        select(self.device)
        step = self._step(tuple(tuple(values[tensor.name].shape()) for tensor in self.inputs), states)
        context = self.contexts[step.profile]
        self._bind(context, step, states)
        for name, place in step.inputs.items():
            self.stream.put(values[name], place)
        self._launch(context, step)
        for name, value in step.hosted.items():
            self.stream.get(step.results[name], value)
        self.stream.wait()
        return step.results | step.hosted

    def _runtime(self, plugins: Path | None) -> Any:
        self.log.clear()
        try:
            runtime = self.trt.Runtime(self.log)
        except (RuntimeError, TypeError) as cause:
            raise LoadError(f"{self.backend} gives no runtime: {self._told() or cause}.", hint="`moetrt doctor` says what is missing.") from cause
        if plugins and (problem := give(self.trt, runtime, plugins)):
            raise LoadError(f"{self.backend} does not take the plugins of {plugins}: {self._told() or problem}.", hint="Build it for this version (docs/kernels.md), and the engines with it.")
        return runtime

    def _deserialise(self, path: Path) -> Any:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise LoadError(f"{self.backend} {self.trt.__version__} cannot open {path}: {self._told() or 'it gives no reason'}", hint=BUILD_HERE)
        return engine

    def _require(self, tensor: Tensor, mode: str) -> None:
        kind = f"{mode.lower()} {tensor.name!r}"
        if tensor.name not in self.names or self.engine.get_tensor_mode(tensor.name) != getattr(self.trt.TensorIOMode, mode):
            raise LoadError(f"{self.where} has no {kind}, which its manifest names.", hint="Build it again.")
        if self.engine.get_tensor_dtype(tensor.name) != getattr(self.trt.DataType, TYPES[tensor.dtype]):
            raise LoadError(f"{self.where} has the {kind} in another dtype than {tensor.dtype}.", hint="Build it again.")
        if self.engine.get_tensor_location(tensor.name) != self.trt.TensorLocation.DEVICE:
            raise LoadError(f"{self.where} has the {kind} on the host, where this runtime keeps none.", hint="Please report it, with the engine's manifest.")

    def _context(self, profile: int) -> Context:
        what = f"a context for profile {profile}"
        made = self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if made is None:
            raise self._refused(what, LoadError)
        if self.scratch:
            made.set_device_memory(self.scratch.address, self.scratch.bytes)
        if not made.set_optimization_profile_async(profile, self.stream.handle):
            raise self._refused(what, LoadError)
        self.stream.wait()
        return Context(made)

    def _step(self, shapes: Shapes, states: dict[str, Buffer]) -> Step:
        given = {tensor.name: shape for tensor, shape in zip(self.inputs, shapes, strict=True)} | {name: states[name].sizes for name in self.states}
        step = self.steps.get(shapes)
        if step is not None and step.shapes == given:
            return step
        if len(self.steps) >= KEPT:
            self._forget()
        sizes = self.sizes(shapes)
        wanted = {tensor: shape_of(tensor, sizes) for tensor in self.results}
        made = self.steps[shapes] = Step(
            profile=self._profile_for(given),
            shapes=given,
            inputs={tensor.name: Buffer(self.device, given[tensor.name], tensor.dtype) for tensor in self.inputs},
            results={tensor.name: Buffer(self.device, shape, tensor.dtype) for tensor, shape in wanted.items()},
            hosted={tensor.name: HostValue(np.empty(shape, numpy_type(tensor.dtype))) for tensor, shape in wanted.items() if tensor.name in self.hosted},
            one_token=is_one_token(sizes),
        )
        return made

    def _forget(self) -> None:
        self.steps = {}
        for context in self.contexts:
            context.step, context.states, context.replay = None, {}, None

    def _profile_for(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """Of the profiles that take these shapes the one that reaches least far."""
        taken, why = {}, []
        for profile in range(len(self.contexts)):
            ranges = {name: tuple(map(tuple, self.engine.get_tensor_profile_shape(name, profile))) for name in shapes}
            beyond = next((name for name, shape in shapes.items() if not _is_within(shape, ranges[name])), None)
            if beyond is None:
                taken[profile] = sum(sum(bounds[HIGH]) for bounds in ranges.values())
            else:
                why.append(f"profile {profile} takes {beyond} from {_dims(ranges[beyond][LOW])} to {_dims(ranges[beyond][HIGH])}, not {_dims(shapes[beyond])}")
        if not taken:
            raise RunError(f"{self.where} has no profile for this step: {'; '.join(why)}.", hint="Give fewer rows or tokens at a time, or build with a larger --max-batch or --max-context.")
        return min(taken, key=taken.__getitem__)

    def _bind(self, context: Context, step: Step, states: dict[str, Buffer]) -> None:
        """Shapes and addresses; what was captured of others is of no use after that."""
        if context.step is step and context.states is states:
            return
        fresh, context.step, context.replay, context.ran = context.step is not step, None, None, False
        if fresh:
            for name, shape in step.shapes.items():
                if not context.context.set_input_shape(name, shape):
                    raise self._refused(f"{name} of {_dims(shape)}")
        addresses = (step.buffers if fresh else {}) | {port: states[name] for name, result in self.states.items() for port in (name, result)}
        for name, buffer in addresses.items():
            if not context.context.set_tensor_address(name, buffer.address):
                raise self._refused(f"the address of {name}")
        self._require_shapes(context, step)
        context.step, context.states = step, states

    def _require_shapes(self, context: Context, step: Step) -> None:
        """What the library infers of the results has to be what they have room for."""
        if lacking := context.context.infer_shapes():
            raise RunError(f"{self.where}: {self.backend} was not told all of {', '.join(lacking)}.", hint="Its manifest was changed; build it again.")
        for name, buffer in step.results.items():
            made = tuple(context.context.get_tensor_shape(name))
            if made != buffer.sizes:
                raise RunError(f"{self.where} makes {name} of {_dims(made)}, where its manifest says {_dims(buffer.sizes)}.", hint="Build it again.")

    def _launch(self, context: Context, step: Step) -> None:
        def enqueue() -> bool:
            return context.context.execute_async_v3(self.stream.handle)

        if step.one_token and context.ran and step.captures and context.replay is None:
            context.replay = self.stream.capture(enqueue)
            step.captures = context.replay is not None
        if context.replay:
            context.replay.launch()
        elif not enqueue():
            raise self._refused("to run")
        context.ran = True

    def _refused(self, what: str, kind: type[MoetrtError] = RunError) -> MoetrtError:
        return kind(f"{self.where}: {self.backend} refuses {what}: {self._told() or 'it gives no reason'}")

    def _told(self) -> str:
        """The library's own words since they were last asked for."""
        told = "; ".join(message.strip() for message in self.log.errors)
        self.log.clear()
        return told


def _is_within(shape: tuple[int, ...], bounds: tuple[tuple[int, ...], ...]) -> bool:
    return len(shape) == len(bounds[LOW]) and all(low <= size <= high for low, size, high in zip(bounds[LOW], shape, bounds[HIGH], strict=True))


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
