"""Plans for TensorRT-RTX, built without a GPU: every rank of every family, the same twice, and refused with reasons."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tiny

from engines.backends import load_backend, tensorrt
from engines.backends.tensorrt import part_done, profiles, read_layers
from engines.build import EngineRequest, build_engines
from exporter.errors import BuildError, MoetrtError, UsageError
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank


@pytest.fixture(scope="module")
def library():
    try:
        return load_backend("tensorrt-rtx")
    except BuildError as error:
        pytest.skip(str(error))


def request(graphs: Path, output: Path, **changes) -> EngineRequest:
    return replace(EngineRequest(graphs, "tensorrt-rtx", output, max_context=32, max_batch=2), **changes)


def rank_record(folder: Path, rank: int = 0) -> EngineRank:
    return files.read_record(EngineRank, folder / records.rank_folder(rank) / records.MANIFEST)


def layers(folder: Path, rank: int = 0) -> list[dict]:
    return json.loads((folder / records.rank_folder(rank) / "rank.layers.json").read_text())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_rank_of_every_family_builds(library, graphs, tmp_path: Path, family: str, tensor: int, precision: str) -> None:
    receipt = build_engines(request(graphs(family, tensor, precision=precision), tmp_path / "engines"))
    assert receipt.built == tuple(range(tensor))
    for rank in range(tensor):
        kinds = [layer["type"] for layer in layers(tmp_path / "engines", rank)]
        assert "gemm" in kinds
        # For each of two profiles: embed, and two segments of each of two layers; the logits are gathered.
        assert (kinds.count("comm_allreduce"), kinds.count("comm_allgather")) == ((10, 2) if tensor > 1 else (0, 0))


@pytest.mark.parametrize("attention", ["absorbed", "naive"])
def test_bf16_in_two_stages_builds(library, graphs, tmp_path: Path, attention: str) -> None:
    build_engines(request(graphs("v3", 2, 2, "bf16", attention=attention), tmp_path / "engines", rank=2))
    record = rank_record(tmp_path / "engines", 2)
    assert {tensor.name for tensor in record.assembly.signatures["rank"].inputs} >= {"layers.0.dense_ffn.hidden", "layers.0.dense_ffn.update"}


def test_a_second_build_gives_the_same_size_and_layers(library, graphs, tmp_path: Path) -> None:
    for name in ("first", "second"):
        build_engines(request(graphs("v3", 2), tmp_path / name, rank=0))
    first, second = (rank_record(tmp_path / name).files for name in ("first", "second"))
    assert first["rank.engine"].bytes == second["rank.engine"].bytes
    assert first["rank.layers.json"] == second["rank.layers.json"]
    assert first["rank.tensors.json"] == second["rank.tensors.json"]


@pytest.mark.parametrize(("family", "precision"), [("v3", "fp32"), ("v3", "fp16"), ("v2", "fp16")])
def test_each_segment_of_each_rank_builds(library, graphs, tmp_path: Path, family: str, precision: str) -> None:
    build_engines(request(graphs(family, 2, precision=precision), tmp_path / "engines", segments=True))
    record = rank_record(tmp_path / "engines", 1)
    assert {"embed", "layers.0.attention", "layers.1.moe_ffn", "head"} <= set(record.assembly.graphs)
    assert record.options["communicator"] is None
    for launch, file in record.assembly.graphs.items():
        assert {file, f"{launch}.layers.json", f"{launch}.tensors.json"} <= set(record.files)
        emitted = json.loads((tmp_path / f"engines/rank-01/{launch}.layers.json").read_text())
        assert not [layer for layer in emitted if layer["type"].startswith("comm_")]


@pytest.fixture(scope="module")
def built(library, graphs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[int, str, float]]]:
    """Graphs, their engines, and the progress that was told while building."""
    folder, source, told = tmp_path_factory.mktemp("built"), graphs(), []
    build_engines(request(source, folder / "engines", compute_capabilities=("8.0", "12.0")), lambda *step: told.append(step))
    return source, folder / "engines", told


def test_the_manifest_tells_what_was_built_for(built) -> None:
    record = rank_record(built[1])
    assert record.options["compute_capabilities"] == ["8.0", "12.0"]
    assert record.options["profiles"][1]["lengths"]["tokens"] == [1, 1, 2]
    assert {(lowering.op, lowering.chosen) for lowering in record.lowerings} == {("Route", "inline"), ("Experts", "inline")}
    assert "com.microsoft.MoE" in record.lowerings[-1].refused["moe_ort"]
    assert record.tools["tensorrt-rtx"]
    cache = next(tensor for tensor in record.assembly.signatures["rank"].inputs if tensor.name.endswith("cache"))
    assert cache.shape == ("batch", 32, 40)


def test_layers_go_by_the_names_of_the_graph(built) -> None:
    names = " ".join(layer["name"] for layer in layers(built[1]))
    assert "/layers.1/moe_ffn/experts/MatMul" in names


def test_engines_hold_their_weights(built) -> None:
    assert sorted(path.name for path in (built[1] / "rank-00").iterdir()) == ["manifest.json", "rank.engine", "rank.layers.json", "rank.tensors.json"]


def test_a_finished_rank_is_not_built_again(built) -> None:
    source, engines, _ = built
    assert build_engines(request(source, engines, compute_capabilities=("8.0", "12.0"))).kept == (0,)
    assert build_engines(request(source, engines, dry_run=True)).built == (0,)


def test_progress_goes_from_nothing_to_all(built) -> None:
    parts = [part for _, _, part in built[2]]
    assert parts[0] < 0.5
    assert parts[-1] == 1.0
    assert all(0 <= part <= 1 for part in parts)


def test_a_node_that_the_parser_does_not_know_is_named(library, graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    path = source / "rank-00/rank.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "/layers.1/attention/o/MatMul")
    node.op_type = "NonZero"
    del node.input[1:]
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(records, "check_files", lambda *_, **__: None)
    with pytest.raises(BuildError, match=r"node /layers.1/attention/o/MatMul \(NonZero\): \S"):
        build_engines(request(source, tmp_path / "engines"))
    assert not list((tmp_path / "engines").glob("**/*"))


def test_an_unknown_compute_capability_is_wrong_use(built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"9.0 is not among(.|\n)*8.9"):
        build_engines(request(built[0], tmp_path / "engines", compute_capabilities=("9.0",)))


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt.MODULES, "tensorrt", ("no_such_module_anywhere",))
    tensorrt.library.cache_clear()
    with pytest.raises(MoetrtError, match=r"pip install 'moetrt\[tensorrt\]'"):
        load_backend("tensorrt")
    tensorrt.library.cache_clear()


def test_profiles_never_pin_the_decode_length() -> None:
    prefill, decode = profiles(max_context=512, max_batch=4)
    assert prefill.lengths == {"batch": (1, 1, 4), "context": (512, 512, 512), "tokens": (1, 128, 512), "selected": (1, 1, 512)}
    assert decode.lengths["tokens"] == (1, 1, 2)
    assert profiles(1, 1)[1].lengths["tokens"] == (1, 1, 1)


def test_layers_are_read_without_the_compilers_counters() -> None:
    dump = "Layers:\nName: __mye123_0_myl0_0, LayerType: shape_call, Inputs: []\nName: /a/MatMul_myl0_1, LayerType: gemm, Inputs: []\n"
    assert [layer.name for layer in read_layers(dump)] == ["__mye_0_myl0_0", "/a/MatMul_myl0_1"]


def test_the_part_done_counts_running_children() -> None:
    assert part_done({}) == 0
    assert part_done({"build": (None, 1, 4)}) == 0.25
    assert part_done({"build": (None, 1, 4), "compile": ("build", 1, 2)}) == 0.375
    assert part_done({"build": (None, 4, 4), "compile": ("build", 2, 2)}) == 1
