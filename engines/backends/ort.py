"""ONNX Runtime on a CPU: lowered graphs beside the rank's weights, which sessions map rather than read."""

import importlib
import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import Any

from exporter.errors import BuildError
from exporter.lowering import lower
from exporter.lowering.unsigned import unsigned_activations
from exporter.plan import files
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Assembly, GraphsRank, Lowering

from ..runtime.session import AS_WRITTEN
from .contract import Backend, RankBuild, RankEngines

CAPABILITIES = Capabilities(
    backend="ort",
    kernels=frozenset({"com.microsoft.MoE"}),
    dtypes=frozenset({"fp32", "fp16"}),
    collectives_inside=False,
    needs_gpu_to_run=False,
    extra="ort",
)
OPTIONS: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "config": AS_WRITTEN}
"""What sessions are opened with; ``config`` are ONNX Runtime's session configuration entries."""


def tools() -> dict[str, str]:
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as cause:
            raise BuildError(f"the backend ort needs {name}, which cannot be imported: {cause}.", hint="pip install 'moetrt[ort]'") from cause
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def build(request: RankBuild) -> RankEngines:
    """Lower each graph of the rank's assembly, and open it once to see that ONNX Runtime takes it."""
    assembly, refusals = _assembly(request.record)
    _link(request.source / request.record.weights, request.folder / request.record.weights)
    lowerings: list[Lowering] = []
    for number, (launch, file) in enumerate(assembly.graphs.items()):
        request.progress(launch, number / len(assembly.graphs))
        lowerings += _build_graph(request.source / file, request.folder / file)
    return RankEngines(assembly, OPTIONS, tuple(lowerings), refusals)


def _assembly(record: GraphsRank) -> tuple[Assembly, dict[str, str]]:
    if record.plan.tensor == 1:
        return record.whole, {}
    return record.segments, {"one graph per rank": "ONNX Runtime on a CPU has no collectives; the chain sums between segments"}


def _build_graph(source: Path, target: Path) -> tuple[Lowering, ...]:
    import onnx

    lowered, lowerings = lower(onnx.load(source, load_external_data=False), CAPABILITIES)
    unsigned_activations(lowered)
    files.write_bytes(target, lowered.SerializeToString(deterministic=True))
    _try_open(target)
    return lowerings


def _try_open(path: Path) -> None:
    """Open a session as cheaply as can be: no optimisation and no repacking, so that weights stay mapped."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # ONNX Runtime's exceptions share no base of their own
        raise BuildError(f"ONNX Runtime cannot open {path.name}: {cause}") from cause


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: ONNX Runtime refuses weights outside the graph's folder, symbolic links too."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


ORT = Backend(CAPABILITIES, tools, build)
