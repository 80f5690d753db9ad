"""ONNX Runtime on a CPU or on CUDA: lowered graphs beside the rank's weights, which sessions map rather than read."""

import importlib
import os
import shutil
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Placed
from exporter.errors import BuildError
from exporter.lowering import NEED_OPS, lower
from exporter.lowering.shapes import shapes_from_inputs
from exporter.lowering.unsigned import unsigned_activations
from exporter.onnx_files import load_graph
from exporter.plan import files
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Assembly, GraphsRank

from ..runtime.openers import OrtOpener
from ..runtime.session import AS_WRITTEN, providers_of
from ..runtime.session import CUDA as CUDA_PROVIDER
from .contract import Backend, RankBuild, RankEngines
from .derived import DERIVED, is_bfloat16, refer, write_derived
from .plugins import OPS_LIBRARY, record_of, with_ops

if TYPE_CHECKING:
    import onnx

CPU = Capabilities(
    backend="ort",
    kernels=frozenset({
        "com.microsoft.MoEGroupRouter", "com.microsoft.MoE", "com.microsoft.QMoE", "com.microsoft.QMoE/router_weights",
        "com.microsoft.QMoE/int8", "com.microsoft.MatMulNBits", "com.microsoft.MatMulNBits/int8", "MatMulInteger",
    }),
    dtypes=frozenset({"fp32", "fp16"}),
    collectives_inside=False,
    needs_gpu_to_run=False,
    extra="ort",
    kernel_dtypes={f"com.microsoft.{kernel}": frozenset({"fp32"}) for kernel in ("MoE", "QMoE", "MatMulNBits")},
)  # fmt: skip
CUDA = Capabilities(
    backend="ort-cuda",
    kernels=frozenset({"com.microsoft.MoE", "com.microsoft.QMoE", "com.microsoft.MatMulNBits"}),
    dtypes=frozenset({"fp32", "fp16"}),
    collectives_inside=False,
    needs_gpu_to_run=True,
    extra="ort-cuda",
    kernel_dtypes={f"com.microsoft.{kernel}": frozenset({"fp16"}) for kernel in ("QMoE", "MatMulNBits")},
)
LIBRARIES = ("onnx", "onnxruntime")
PHASE = 1 / 3
"""What lowering the graphs, packing the weights and opening the engines each count for in a rank's progress."""
CUDA_OPTIONS = {"use_tf32": "0"}
"""float32 means float32: the library's default rounds factors to 10 bits."""
OPTIONS: dict[str, dict[str, Any]] = {
    "ort": {"providers": ["CPUExecutionProvider"], "config": AS_WRITTEN},
    "ort-cuda": {"providers": [[CUDA_PROVIDER, CUDA_OPTIONS], "CPUExecutionProvider"], "config": AS_WRITTEN},
}
"""What sessions are opened with; ``config`` are ONNX Runtime's session configuration entries."""
FAST = "kernels round activations in blocks of their own, whatever the scheme says; build without it for what was calibrated"
"""What a manifest says of engines that need not compute as their graphs are written."""
DEQUANTISED = {"session.disable_quant_qdq": "1"}
"""Where weights alone are quantised: matrices that no rewrite has packed become float32 once, at load. ONNX Runtime would give those
of 8 bits a kernel that is some thirty times as slow in float32; experts, nearly all of the bytes, stay as they are."""


def tools(backend: str) -> dict[str, str]:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as cause:
            raise BuildError(f"the backend {backend} needs {name}, which cannot be imported: {cause}.", hint=f"pip install 'moetrt[{backend}]'") from cause
    return {name: importlib.import_module(name).__version__ for name in LIBRARIES}


def build(able: Capabilities, request: RankBuild) -> RankEngines:
    """Lower each graph of the rank's assembly, and open it once to see that ONNX Runtime takes it."""
    needed = record_of(request.plugins, OPS_LIBRARY) if request.plugins else None
    given, able = able, with_ops(able) if needed else able
    assembly, refusals = _assembly(request.record)
    name, record = request.record.weights, request.record
    _link(request.source / name, request.folder / name)
    stamps, derived = {name: record.files[name]}, {}
    made, short = [], cache(partial(is_bfloat16, request.folder / name))  # each tensor is looked at once
    for launch, file in assembly.graphs.items():
        request.progress(launch, len(made) / len(assembly.graphs) * PHASE)
        made.append(lower(load_graph(request.source / file), able, derived, request.fast, short))
    lowerings = tuple(one for _, records in made for one in records)
    used = any(one.chosen in NEED_OPS for one in lowerings)
    graphs, places = [lowered for lowered, _ in made], {}
    if derived:
        packed = partial(request.progress, "packing weights")
        places, stamps[DERIVED] = write_derived(request.folder / name, request.folder / DERIVED, derived, lambda part: packed(PHASE * (1 + part)))
    opens = able.backend == "ort" or CUDA_PROVIDER in _providers()
    for number, ((launch, file), graph) in enumerate(zip(assembly.graphs.items(), graphs, strict=True)):
        request.progress(launch, PHASE * (2 + number / len(made)))
        _write_graph(graph, places, request.folder / file, given)
        if opens:
            _try_open(request.folder / file, providers_of(OPTIONS[able.backend]), request.plugins)
    if not opens:
        refusals["opening"] = "ONNX Runtime has no CUDAExecutionProvider here: these graphs were written, not opened"
    options = dict(OPTIONS[able.backend])
    if given is CUDA and len(assembly.graphs) == 1:
        options["providers"] = [[CUDA_PROVIDER, CUDA_OPTIONS | {"enable_cuda_graph": "1"}], "CPUExecutionProvider"]
    options |= ({"fast": FAST} if request.fast else {}) | ({"plugins": needed} if used else {})
    options |= {"config": AS_WRITTEN | DEQUANTISED} if _is_weights_alone(record) else {}
    return RankEngines(assembly, options, lowerings, refusals, stamps)


def _providers() -> list[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def _assembly(record: GraphsRank) -> tuple[Assembly, dict[str, str]]:
    if record.plan.tensor == 1:
        return record.whole, {}
    return record.segments, {"one graph per rank": "ONNX Runtime has no collectives of ours; the chain sums between segments"}


def _is_weights_alone(record: GraphsRank) -> bool:
    made = record.quantization
    return made is not None and bool(made.weights) and not made.rounds_activations


def _write_graph(lowered: "onnx.ModelProto", places: dict[str, Placed], target: Path, able: Capabilities) -> None:
    refer(lowered, places)
    shapes_from_inputs(lowered)
    if able is CPU:
        unsigned_activations(lowered)
    files.write_bytes(target, lowered.SerializeToString(deterministic=True))


def _try_open(path: Path, providers: list[Any], library: Path | None) -> None:
    """Open a session as cheaply as can be: no optimisation and no repacking, so that weights stay mapped."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        if library:
            options.register_custom_ops_library(str(library))
        onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as cause:  # ONNX Runtime's exceptions share no base of their own
        raise BuildError(f"ONNX Runtime cannot open {path.name}: {cause}") from cause


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: ONNX Runtime refuses weights outside the graph's folder, symbolic links too."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _backend(able: Capabilities, provider: str) -> Backend:
    name, libraries = able.backend, tuple((library,) for library in LIBRARIES)
    return Backend(able, partial(tools, name), partial(build, able), OrtOpener, substitutes=True, derives=True, with_plugins=with_ops if able is CPU else None, libraries=libraries, provider=provider)


ORT = _backend(CPU, "CPUExecutionProvider")
ORT_CUDA = _backend(CUDA, CUDA_PROVIDER)
