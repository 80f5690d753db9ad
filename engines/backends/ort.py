"""ONNX Runtime on a CPU: lowered graphs beside the rank's weights, which sessions map rather than read."""

import importlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.layout import Placed
from exporter.checkpoint.reader import stored_array
from exporter.checkpoint.writer import Entry, layout_of, write_entries
from exporter.errors import BuildError
from exporter.lowering import Derived, lower
from exporter.lowering.shapes import shapes_from_inputs
from exporter.lowering.unsigned import unsigned_activations
from exporter.plan import files
from exporter.plan.capabilities import Capabilities
from exporter.plan.manifest import Assembly, FileStamp, GraphsRank

from ..runtime.session import AS_WRITTEN
from .contract import Backend, RankBuild, RankEngines

if TYPE_CHECKING:
    import numpy as np
    import onnx

CAPABILITIES = Capabilities(
    backend="ort",
    kernels=frozenset({"com.microsoft.MoEGroupRouter", "com.microsoft.MoE", "com.microsoft.QMoE", "com.microsoft.MatMulNBits", "MatMulInteger"}),
    dtypes=frozenset({"fp32", "fp16"}),
    collectives_inside=False,
    needs_gpu_to_run=False,
    extra="ort",
)
DERIVED = "lowered.safetensors"
"""Weights in the order that ONNX Runtime's kernels want, beside the portable ones."""
OPTIONS: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "config": AS_WRITTEN}
"""What sessions are opened with; ``config`` are ONNX Runtime's session configuration entries."""
FAST = "kernels that round activations in blocks of their own stand where the scheme has none, or others: build without --fast for what was calibrated"
"""What a manifest says of engines that need not compute as their graphs are written."""
DEQUANTISED = {"session.disable_quant_qdq": "1"}
"""For 8-bit weights alone: matrices become float32 once, at load. The kernel for them that computes in float32 is some thirty
times as slow; experts, nearly all of the bytes, stay in 8 bits."""


def tools() -> dict[str, str]:
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as cause:
            raise BuildError(f"the backend ort needs {name}, which cannot be imported: {cause}.", hint="pip install 'moetrt[ort]'") from cause
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def build(request: RankBuild) -> RankEngines:
    """Lower each graph of the rank's assembly, and open it once to see that ONNX Runtime takes it."""
    import onnx

    assembly, refusals = _assembly(request.record)
    name, record = request.record.weights, request.record
    _link(request.source / name, request.folder / name)
    stamps, derived = {name: record.files[name]}, {}
    made = [lower(onnx.load(request.source / file, load_external_data=False), CAPABILITIES, derived, request.fast) for file in assembly.graphs.values()]
    graphs, places = [lowered for lowered, _ in made], {}
    if derived:
        places, stamps[DERIVED] = write_derived(request.folder / name, request.folder / DERIVED, derived)
    for number, ((launch, file), graph) in enumerate(zip(assembly.graphs.items(), graphs, strict=True)):
        request.progress(launch, number / len(made))
        _build_graph(graph, places, request.folder / file)
    options = OPTIONS | ({"fast": FAST} if request.fast else {})
    options |= {"config": AS_WRITTEN | DEQUANTISED} if _is_8_bit_weights(record, graphs) else {}
    return RankEngines(assembly, options, tuple(one for _, records in made for one in records), refusals, stamps)


def _assembly(record: GraphsRank) -> tuple[Assembly, dict[str, str]]:
    if record.plan.tensor == 1:
        return record.whole, {}
    return record.segments, {"one graph per rank": "ONNX Runtime on a CPU has no collectives; the chain sums between segments"}


def _is_8_bit_weights(record: GraphsRank, graphs: "list[onnx.ModelProto]") -> bool:
    import onnx

    made = record.quantization
    if made is None or not made.weights or made.rounds_activations:
        return False
    return not any(tensor.data_type == onnx.TensorProto.INT4 for model in graphs for tensor in model.graph.initializer)


def write_derived(weights: Path, target: Path, derived: dict[str, Derived]) -> tuple[dict[str, Placed], FileStamp]:
    """Make the tensors that kernels want in another order, an expert at a time. :returns: their places in ``target``, and its stamp."""
    entries = [Entry(one.name, one.dtype, one.shape, partial(_pieces, weights, one)) for one in derived.values()]
    placed = layout_of(entries)
    stamp = write_entries(target, entries, placed)
    return {place.name: place for place in placed.tensors}, stamp


def _pieces(weights: Path, made: Derived) -> "Iterator[np.ndarray]":
    return made.make(*(stored_array(weights, name) for name in made.sources))


def _build_graph(lowered: "onnx.ModelProto", places: dict[str, Placed], target: Path) -> None:
    for tensor in lowered.graph.initializer:
        if tensor.name in places:
            places[tensor.name].refer(tensor, DERIVED)
    shapes_from_inputs(lowered)
    unsigned_activations(lowered)
    files.write_bytes(target, lowered.SerializeToString(deterministic=True))
    _try_open(target)


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


ORT = Backend(CAPABILITIES, tools, build, substitutes=True)
