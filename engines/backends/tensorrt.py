"""TensorRT and TensorRT-RTX, which share their API: one module builds for both, with or without a GPU at hand.

TensorRT-RTX builds its plans on any machine; TensorRT wants the GPU that it builds for.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError, UsageError
from exporter.lowering import Derived, lower
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Assembly, EngineRank, Lowering
from exporter.plan.signature import BATCH, CONTEXT, SELECTED, TOKENS, Signature, Tensor

from .contract import Backend, Progress, RankBuild, RankEngines
from .derived import DERIVED, refer, write_derived
from .emitted import Emitted, read_layers
from .parsed import Parsed, read_network
from .plugins import PLUGIN_LIBRARY, record_of, register, with_plugins

if TYPE_CHECKING:
    import onnx

KERNELS = frozenset({"trt.DistCollective"})
TENSORRT_CAPABILITIES = Capabilities(
    backend="tensorrt",
    kernels=KERNELS,
    dtypes=frozenset({"fp32", "fp16", "bf16"}),
    collectives_inside=True,
    needs_gpu_to_run=True,
    extra="tensorrt",
    notes=("Engines run on the GPU generation that they were built on.",),
)
GENERATIONS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Of GPUs, that TensorRT-RTX runs on, by its own words when it refuses another."""
RTX_CAPABILITIES = replace(
    TENSORRT_CAPABILITIES,
    backend="tensorrt-rtx",
    extra="tensorrt-rtx",
    notes=(f"Plans are compiled for the GPU when they are loaded; the generations are {', '.join(GENERATIONS)} and later.",),
)
MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Backend → import names, the first that works."""
EXPERIMENTAL = "int8 products of int8 activations: TensorRT-RTX compiles them, its documentation supports int8 in weights only"
"""What a manifest says of engines beyond the library's word."""
USUAL_PREFILL = 128
"""Tokens that the prefill profile is tuned for, where the context allows."""


@dataclass(frozen=True)
class Profile:
    """Lengths that an engine is built for: symbolic dimension → least, usual, most."""

    name: str
    lengths: dict[str, tuple[int, int, int]]


def profiles(max_context: int, max_batch: int) -> tuple[Profile, ...]:
    """One for prompts and one for single tokens.

    Decode reaches to two tokens, though one is all it serves: a wholly static profile stores a second copy of the weights.
    """
    usual = min(USUAL_PREFILL, max_context)
    fixed = {BATCH: (1, 1, max_batch), CONTEXT: (max_context,) * 3}
    two = min(2, max_context)
    return (
        Profile("prefill", fixed | {TOKENS: (1, usual, max_context), SELECTED: (1, 1, max_context)}),
        Profile("decode", fixed | {TOKENS: (1, 1, two), SELECTED: (1, 1, two)}),
    )


@cache
def library(backend: str) -> ModuleType:
    """The library's Python module: the one door to it.

    :raises BuildError: it cannot be imported.
    """
    reason = None
    for name in MODULES[backend]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as cause:
            reason = cause
    raise BuildError(f"the backend {backend} needs its library, which cannot be imported: {reason}.", hint=f"pip install 'moetrt[{backend}]'") from reason


@cache
def log_of(backend: str) -> Any:
    """The process's logger: the library keeps the first that it is given, so there is one."""
    trt = library(backend)
    kept = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Log(trt.ILogger):
        """Keeps errors, and the compiler's list of layers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers: str = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers += message

        def clear(self) -> None:
            self.errors, self.layers = [], ""

    return Log()


def tools(backend: str) -> dict[str, str]:
    return {backend: library(backend).__version__, "onnx": importlib.metadata.version("onnx")}


def build(backend: str, request: RankBuild) -> RankEngines:
    """One engine for the whole rank, or one for each segment; beside it, what the parser took and what the compiler made of it."""
    record, quantised = request.record, request.record.quantization
    assembly = record.segments if request.segments else record.whole
    able = find_capabilities(backend)
    needed = record_of(request.plugins, PLUGIN_LIBRARY) if request.plugins else None
    if request.plugins:
        able = with_plugins(able)
        register(library(backend), request.plugins)
    chosen = profiles(request.max_context, request.max_batch)
    graphs, signatures, lowerings = {}, {}, []
    for launch, file in assembly.graphs.items():
        signature = assembly.signatures[launch]
        plan, parsed, layers, records = _build_graph(able, request, request.source / file, chosen)
        graphs[launch] = f"{launch}.engine"
        signatures[launch] = _with_context(signature, request.max_context)
        files.write_bytes(request.folder / graphs[launch], plan)
        files.write_record(request.folder / f"{launch}.tensors.json", parsed)
        files.write_record(request.folder / f"{launch}.layers.json", layers)
        lowerings += records
    options = {
        "profiles": chosen,
        "compute_capabilities": list(request.compute_capabilities) or "default",
        "communicator": "one per pipeline stage" if record.plan.tensor > 1 and not request.segments else None,
        "plugins": needed,
        "experimental": EXPERIMENTAL if backend == RTX_CAPABILITIES.backend and quantised and quantised.rounds_activations else None,
    }
    return RankEngines(Assembly(assembly.steps, graphs, signatures), files.to_json(options), tuple(lowerings))


def _build_graph(
    able: Capabilities, request: RankBuild, source: Path, chosen: tuple[Profile, ...]
) -> tuple[bytes, Parsed, tuple[Emitted, ...], tuple[Lowering, ...]]:
    """:returns: the plan, the network and the layers that it is made of, and what became of custom ops."""
    backend, derived = able.backend, {}
    trt, log = library(backend), log_of(backend)
    portable = load_graph(source)
    lowered, lowerings = lower(portable, able, derived)
    log.clear()
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    with _beside_weights(request, lowered, derived) as folder:
        _parse(trt.OnnxParser(network, log), lowered, folder / source.name, backend)
    parsed = read_network(trt, network, portable, lowered, source.parent)
    config = _config(trt, builder, request)
    for profile in chosen:
        config.add_optimization_profile(_profile(builder, network, lowered, profile))
    monitor = _monitor(trt, request.progress, source.stem)  # must outlive the build
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{backend} cannot build {source.name}: {_reason(log)}")
    return memoryview(plan), parsed, tuple(read_layers(log.layers)), lowerings


def find_capabilities(backend: str) -> Capabilities:
    return RTX_CAPABILITIES if backend == RTX_CAPABILITIES.backend else TENSORRT_CAPABILITIES


def _strongly_typed(trt: ModuleType) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@contextmanager
def _beside_weights(request: RankBuild, lowered: "onnx.ModelProto", derived: dict[str, Derived]) -> Iterator[Path]:
    """A folder that holds all that the lowered model refers to: that of the portable graph, or one for a while, with derived weights too.

    The parser refuses weights outside the graph's folder.
    """
    if not derived:
        yield request.source
        return
    with TemporaryDirectory(dir=request.folder) as name:
        folder, weights = Path(name), request.source / request.record.weights
        (folder / weights.name).symlink_to(weights.resolve())
        places, _ = write_derived(weights, folder / DERIVED, derived, partial(request.progress, "packing weights"))
        refer(lowered, places)
        yield folder


def _parse(parser: Any, model: "onnx.ModelProto", source: Path, backend: str) -> None:
    """Weights are read from the portable graph's folder: the lowered model is never written."""
    if parser.parse(model.SerializeToString(), str(source)):
        return
    faults = [parser.get_error(number) for number in range(parser.num_errors)]
    told = "; ".join(f"node {fault.node_name()} ({fault.node_operator()}): {fault.desc().strip()}" for fault in faults)
    raise BuildError(f"{backend} cannot parse {source.name}: {told or 'no reason given'}.", hint="`moetrt build --backend ort` runs every op.")


def _config(trt: ModuleType, builder: Any, request: RankBuild) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32: the library's default rounds factors to 10 bits
    wanted = request.compute_capabilities
    if wanted:
        config.num_compute_capabilities = len(wanted)
    for number, capability in enumerate(wanted):
        config.set_compute_capability(_compute_capability(trt, capability), number)
    return config


def _compute_capability(trt: ModuleType, text: str) -> Any:
    """``8.9`` → ``SM89``."""
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    name = f"SM{text.replace('.', '')}"
    if name not in known:
        listed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known)
        raise UsageError(f"--compute-capability {text} is not among those that the library compiles for.", hint=f"Choose from {listed}.")
    return known[name]


def _profile(builder: Any, network: Any, model: "onnx.ModelProto", profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    for number in range(network.num_inputs):
        name = network.get_input(number).name
        made.set_shape(name, *(_lengths(shapes[name], profile, which) for which in range(3)))
    return made


def _lengths(shape: list[int | str], profile: Profile, which: int) -> list[int]:
    return [profile.lengths[dim][which] if isinstance(dim, str) else dim for dim in shape]


def _monitor(trt: ModuleType, progress: Progress, what: str) -> Any:
    """The library's nested phases as one part done: a phase's step is a piece of its parent's."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, _, steps = self.phases.get(phase_name, (None, 0, 1))
            self.phases[phase_name] = (parent, step + 1, steps)
            progress(what, part_done(self.phases))
            return True

        def phase_finish(self, phase_name: str) -> None:
            parent, _, steps = self.phases.get(phase_name, (None, 0, 1))
            self.phases[phase_name] = (parent, steps, steps)

    return Monitor()


def part_done(phases: dict[str, tuple[str | None, int, int]]) -> float:
    """The part of the first phase that is done, its running child counted as a part of a step.

    :param phases: name → parent, steps done, steps.
    """
    name, part, weight = next(iter(phases), None), 0.0, 1.0
    while name is not None:
        _, done, steps = phases[name]
        part += weight * done / max(steps, 1)
        weight /= max(steps, 1)
        running = [child for child, (parent, did, of) in phases.items() if parent == name and did < of]
        name = running[-1] if running and done < steps else None
    return min(part, 1.0)


def _reason(log: Any) -> str:
    return "; ".join(message.strip() for message in log.errors[-3:]) or "no reason given"


def _with_context(signature: Signature, max_context: int) -> Signature:
    """The plan's signature: its cache has a fixed length."""

    def fix(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=tuple(max_context if dim == CONTEXT else dim for dim in tensor.shape))

    return Signature(tuple(map(fix, signature.inputs)), tuple(map(fix, signature.outputs)), signature.states)


def _open(folder: Path, ranks: dict[int, EngineRank]) -> Any:
    from ..runtime.tensorrt_opener import TensorRtOpener

    return TensorRtOpener(folder, ranks)


def _backend(capabilities: Capabilities) -> Backend:
    name = capabilities.backend
    made: Callable[..., Any] = partial(build, name)
    libraries, is_rtx = (MODULES[name], ("onnx",)), name == RTX_CAPABILITIES.backend
    return Backend(
        capabilities,
        partial(tools, name),
        made,
        _open,
        takes_compute_capabilities=True,
        takes_segments=True,
        with_plugins=with_plugins,
        derives=True,
        libraries=libraries,
        runs_with=(("cuda.bindings",),),
        generations=GENERATIONS if is_rtx else (),
        needs_gpu_to_build=not is_rtx,
    )


TENSORRT = _backend(TENSORRT_CAPABILITIES)
TENSORRT_RTX = _backend(RTX_CAPABILITIES)
