"""TensorRT-RTX plans with our plugins in them, built without a GPU; what is recorded of the library, and what is refused."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines.backends import plugins as module
from engines.backends import tensorrt
from engines.backends.emitted import Emitted
from engines.backends.plugins import PLUGIN_LIBRARY, record_of, register
from engines.build import EngineRequest, build_engines
from engines.compare.build_only import compare_builds
from engines.inspection import inspect
from exporter.errors import BuildError, UsageError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank
from exporter.plan.parallel import Plan

LIBRARY = Path(__file__).parents[2] / "build/cpp/libmoetrt-plugins.so"
TENSOR = 2


@pytest.fixture(scope="module")
def library() -> Path:
    """The plugins, where they are built and TensorRT-RTX takes them."""
    if not LIBRARY.is_file():
        pytest.skip("the plugins are not built (make cpp, where nvcc is)")
    try:
        register(tensorrt.library("tensorrt-rtx"), LIBRARY)
    except BuildError as error:
        pytest.skip(f"{error} {error.hint}")
    return LIBRARY


@pytest.fixture(scope="module")
def float16(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins") / "graphs"
    export_model(ExportRequest(checkpoint("v3"), folder, Plan(TENSOR, 1), precision="fp16"))
    return folder


@pytest.fixture(scope="module")
def quantised(float16: Path, engines, tmp_path_factory: pytest.TempPathFactory):
    """``quantised(scheme)``: float16 graphs quantised by the ranges of float32 ones."""
    folder = tmp_path_factory.mktemp("quantised")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"token_ids": np.random.default_rng(seed).integers(2, 128, 14).tolist()}) + "\n" for seed in range(3)))
    calibrate(CalibrationRequest(engines("v3").parent / "graphs", prompts, folder / "table.json", min_tokens_per_expert=1))

    def make(scheme: str) -> Path:
        if not (folder / scheme).exists():
            quantize(QuantizeRequest(float16, folder / scheme, folder / "table.json", scheme))
        return folder / scheme

    return make


def build(graphs: Path, output: Path, library: Path | None) -> Path:
    build_engines(EngineRequest(graphs, "tensorrt-rtx", output, max_context=32, max_batch=2, plugins=library))
    return output


def rank_record(folder: Path, rank: int = 0) -> EngineRank:
    return files.read_record(EngineRank, folder / records.rank_folder(rank) / records.MANIFEST)


def plugin_layers(folder: Path, rank: int = 0) -> list[Emitted]:
    path = folder / records.rank_folder(rank) / "rank.layers.json"
    return [layer for layer in files.from_json(tuple[Emitted, ...], files.read_json(path), str(path)) if layer.type == "custom_layer"]


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "float"])
def test_routing_and_experts_of_every_rank_are_plugins(library: Path, float16: Path, quantised, tmp_path: Path, scheme: str) -> None:
    """In both profiles; weights stand in the plan once; no file is left of those that were turned."""
    engines = build(float16 if scheme == "float" else quantised(scheme), tmp_path / "engines", library)
    op = "Experts" if scheme == "float" else "QuantizedExperts"
    for rank in range(TENSOR):
        layers = plugin_layers(engines, rank)
        assert {node.rpartition("/")[2] for layer in layers for node in layer.nodes} == {"Route", op}
        assert {layer.program for layer in layers} == {0, 1}
        matrices = [constant.weight for layer in layers for constant in layer.holds if len(constant.dims) == 3 and constant.dims[1] > 1]
        assert len(matrices) == len(set(matrices)) > 0
        assert {path.suffix for path in (engines / records.rank_folder(rank)).iterdir()} == {".json", ".engine"}
        chosen = {one.op: one.chosen for one in rank_record(engines, rank).lowerings}
        assert (chosen["Route"], chosen[op]) == ("plugin_tensorrt", "plugin_tensorrt")


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_engines_with_plugins_hold_and_multiply_what_those_without_do(library: Path, quantised, tmp_path: Path, scheme: str) -> None:
    with_them, without = build(quantised(scheme), tmp_path / "with", library), build(quantised(scheme), tmp_path / "without", None)
    found = compare_builds(without, with_them)
    assert found.verdict == "same", found
    assert not any("plugin" in one.chosen for one in rank_record(without).lowerings)


def test_the_manifest_names_the_library_and_another_one_builds_anew(library: Path, float16: Path, tmp_path: Path) -> None:
    engines = build(float16, tmp_path / "engines", library)
    assert rank_record(engines).options["plugins"] == {"library": library.name, "version": "1", "sha256": files.sha256_file(library)}
    assert build_engines(EngineRequest(float16, "tensorrt-rtx", engines, max_context=32, max_batch=2, plugins=library)).built == ()
    assert build_engines(EngineRequest(float16, "tensorrt-rtx", engines, max_context=32, max_batch=2)).built == (0, 1)
    assert rank_record(engines).options["plugins"] is None


def test_inspect_tells_what_became_of_the_ops(library: Path, float16: Path, tmp_path: Path) -> None:
    text = inspect(build(float16, tmp_path / "engines", library)).summary()
    assert "plugin_tensorrt" in text
    assert library.name in text


def c_library(folder: Path, source: str) -> Path:
    (folder / "library.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "library.so", folder / "library.c"], check=True)
    return folder / "library.so"


def test_libraries_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for path in (tmp_path / "text.so", c_library(tmp_path, "int x;")):
        with pytest.raises(BuildError, match="is no library of moetrt's TensorRT plugins that can be loaded here"):
            record_of(path, PLUGIN_LIBRARY)


def test_a_library_of_another_version_is_refused_by_both_versions(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has TensorRT plugins of version 7; this moetrt lowers for version 1") as refused:
        record_of(c_library(tmp_path, 'const char* moetrt_plugins_version(void) { return "7"; }'), PLUGIN_LIBRARY)
    assert "make cpp" in refused.value.hint


def test_backends_without_plugins_refuse_them(graphs, tmp_path: Path) -> None:
    (tmp_path / "any.so").touch()
    with pytest.raises(UsageError, match="the backend ort-cuda has no use for --plugins"):
        build_engines(EngineRequest(graphs(), "ort-cuda", tmp_path / "engines", plugins=tmp_path / "any.so"))
    assert not (tmp_path / "engines").exists()


def test_where_tensorrt_rtx_would_end_the_process_it_is_told_what_to_link(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNVERSIONED", "libtensorrt_rtx.so.1.7")
    monkeypatch.setattr(module.Path, "read_text", lambda path: "7f00-7f01 r-xp 0 0:0 0 /some/where/libtensorrt_rtx.so.1.7.1\n")
    with pytest.raises(BuildError, match="would end this process") as refused:
        module._require_unversioned(tensorrt.library("tensorrt-rtx"))
    assert refused.value.hint == "ln -s libtensorrt_rtx.so.1.7.1 /some/where/libtensorrt_rtx.so.1.7"
