"""``build --fast`` and ``--backend ort-cuda``: what is substituted is said, and what cannot run here is refused by name."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from engines.inspection import inspect
from exporter.errors import LoadError, UsageError
from exporter.lowering.shapes import shapes_from_inputs
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank


@pytest.fixture(scope="module")
def weights(engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of two ranks in ``int8-weights``."""
    output = tmp_path_factory.mktemp("quantised") / "graphs"
    quantize(QuantizeRequest(engines("v3", 2).parent / "graphs", output, None, "int8-weights"))
    return output


@pytest.fixture(scope="module")
def fast(weights: Path) -> Path:
    build_engines(EngineRequest(weights, "ort", weights.parent / "fast", fast=True))
    return weights.parent / "fast"


def record(folder: Path) -> EngineRank:
    return files.read_record(EngineRank, folder / "rank-00" / records.MANIFEST)


def test_manifest_inspect_and_run_say_what_was_substituted(moetrt, fast: Path) -> None:
    assert "round activations" in record(fast).options["fast"]
    assert any(note.startswith("fast: kernels round activations") for note in inspect(fast, False).notes)
    result = moetrt("run", fast, "--token-ids", "5,9", "--max-tokens", 2)
    assert "built with --fast" in result.err


def test_an_engine_is_built_anew_when_speed_is_asked_for_or_not(weights: Path, tmp_path: Path) -> None:
    asked = EngineRequest(weights, "ort", tmp_path / "ort")
    assert build_engines(asked).built == (0, 1)
    assert build_engines(asked).kept == (0, 1)
    assert build_engines(replace(asked, fast=True)).built == (0, 1)


def test_a_fast_rank_and_an_exact_one_are_no_set(weights: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        build_engines(EngineRequest(weights, "ort", tmp_path / "ort", rank=rank, fast=rank == 1))
    with pytest.raises(LoadError, match=r"rank-01 is of another --fast than rank-00"):
        load(tmp_path / "ort")


def test_fast_is_refused_where_there_is_nothing_to_take(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(UsageError, match="no kernels that --fast would take"):
        build_engines(EngineRequest(weights, "tensorrt-rtx", tmp_path / "rtx", fast=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_for_cuda_are_written_without_one_and_refused_where_there_is_none(engines, tmp_path: Path, precision: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    graphs = engines("v3", 1, precision=precision).parent / "graphs"
    build_engines(EngineRequest(graphs, "ort-cuda", tmp_path / "cuda"))
    made = record(tmp_path / "cuda")
    assert "not opened" in made.refusals["opening"]
    (provider, options), cpu = made.options["providers"]
    assert (provider, options["enable_cuda_graph"], cpu) == ("CUDAExecutionProvider", "1", "CPUExecutionProvider")
    nodes = onnx.load(tmp_path / "cuda/rank-00/rank.onnx", load_external_data=False).graph.node
    casts = {node.output[0] for node in nodes if node.op_type == "Cast"}
    assert not casts & {node.input[2] for node in nodes if node.op_type == "MoE"}, "the kernel computes in the graphs' precision"
    with pytest.raises(LoadError, match=r"CUDAExecutionProvider, which this onnxruntime \S+ does not have"):
        load(tmp_path / "cuda")


def test_ranks_that_are_cut_are_not_captured(engines, tmp_path: Path) -> None:
    build_engines(EngineRequest(engines("v3", 2).parent / "graphs", "ort-cuda", tmp_path / "cuda"))
    assert "enable_cuda_graph" not in record(tmp_path / "cuda").options["providers"][0][1]


def test_a_graph_of_many_layers_computes_positions_once(engines, tmp_path: Path) -> None:
    """After ONNX Runtime has merged equal nodes: the number of layers does not show in what depends on shapes alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(engines("v3", 1) / "rank-00/rank.onnx", options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "Softmax" for node in nodes) > 2
    assert sum(node.op_type in ("Range", "LessOrEqual") for node in nodes) <= 4
    assert sum(node.op_type == "TopK" for node in nodes) == 0


def test_dimensions_that_no_input_has_are_read_where_they_were() -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    value = lambda name, shape: helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
    nodes = [helper.make_node("Shape", ["inner"], ["a"], start=0, end=1), helper.make_node("Shape", ["inner"], ["b"], start=1, end=2), helper.make_node("Shape", ["inner"], ["c"])]
    graph = helper.make_graph(nodes, "g", [value("x", ("batch", "tokens", 4))], [], value_info=[value("inner", ("batch", "other", 8))])
    model = helper.make_model(graph)
    shapes_from_inputs(model)
    assert [node.input[0] for node in model.graph.node] == ["x", "inner", "inner"]
