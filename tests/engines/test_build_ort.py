"""Engines for ONNX Runtime: self-contained, equal to the portable graphs, built once, and refused with reasons."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from tolerances import BY_DTYPE, LOGITS

from engines.build import EngineRequest, build_engines
from exporter.errors import BuildError, LoadError, MoetrtError, UsageError
from exporter.ops import DOMAIN
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, RankSet


def request(graphs: Path, output: Path, **changes) -> EngineRequest:
    return replace(EngineRequest(graphs, "ort", output, max_context=32, max_batch=2), **changes)


def rank_record(folder: Path, rank: int = 0) -> EngineRank:
    return files.read_record(EngineRank, folder / records.rank_folder(rank) / records.MANIFEST)


def open_session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_random(session, seed: int = 0) -> dict[str, np.ndarray]:
    """All outputs for random inputs: 2 rows, 5 tokens, context 16, the rows starting at 0 and 3."""
    lengths, generator, feeds = {"batch": 2, "tokens": 5, "context": 16, "selected": 5}, np.random.default_rng(seed), {}
    for value in session.get_inputs():
        shape = [lengths.get(dim, dim) for dim in value.shape]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}[value.type]
        feeds[value.name] = generator.standard_normal(shape).astype(kind) if kind != np.int64 else generator.integers(0, 5, shape)
    if "start" in feeds:
        feeds["start"] = np.array([0, 3])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lowered_graphs_compute_what_the_portable_ones_do(graphs, tmp_path: Path, family: str, tensor: int, precision: str) -> None:
    source = graphs(family, tensor, precision=precision)
    build_engines(request(source, tmp_path / "ort"))
    tolerance = LOGITS if precision == "fp32" else BY_DTYPE["float16"]
    for rank in range(tensor):
        folder = records.rank_folder(rank)
        for file in rank_record(tmp_path / "ort", rank).assembly.graphs.values():
            portable, lowered = (run_random(open_session(root / folder / file)) for root in (source, tmp_path / "ort"))
            assert portable.keys() == lowered.keys()
            for name, wanted in portable.items():
                scale = max(1.0, float(np.abs(wanted).max()))
                np.testing.assert_allclose(lowered[name] / scale, wanted / scale, tolerance.relative, tolerance.absolute, err_msg=f"{file}: {name}")


def test_one_rank_is_one_graph_and_several_are_segments(graphs, tmp_path: Path) -> None:
    for tensor in (1, 2):
        build_engines(request(graphs("v3", tensor), tmp_path / str(tensor)))
    assert list(rank_record(tmp_path / "1").assembly.graphs) == ["rank"]
    divided = rank_record(tmp_path / "2")
    assert "layers.1.moe_ffn" in divided.assembly.graphs
    assert "no collectives" in divided.refusals["one graph per rank"]


def test_no_custom_op_is_left_and_the_manifest_tells_what_became_of_each(graphs, tmp_path: Path) -> None:
    build_engines(request(graphs(), tmp_path / "ort"))
    model = onnx.load(tmp_path / "ort/rank-00/rank.onnx", load_external_data=False)
    assert DOMAIN not in {node.domain for node in model.graph.node}
    assert not model.functions
    told = {(lowering.node, lowering.chosen) for lowering in rank_record(tmp_path / "ort").lowerings}
    assert told == {("/layers.1/moe_ffn/Route", "router_ort"), ("/layers.1/moe_ffn/experts/Experts", "moe_ort")}


def test_engines_stand_without_the_graphs(graphs, tmp_path: Path) -> None:
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    build_engines(request(source, tmp_path / "ort"))
    shutil.rmtree(source)
    assert run_random(open_session(tmp_path / "ort/rank-00/rank.onnx"))["logits"].shape == (2, 5, 128)
    records.check_files(tmp_path / "ort/rank-00", rank_record(tmp_path / "ort").files, verify=True)
    assert (tmp_path / "ort/tokenizer.json").read_text() == "{}"


def test_weights_take_no_second_place_on_the_disk(graphs, tmp_path: Path) -> None:
    build_engines(request(graphs(), tmp_path / "ort"))
    assert (tmp_path / "ort/rank-00/weights.safetensors").samefile(graphs() / "rank-00/weights.safetensors")


def test_weights_are_copied_where_links_are_not_to_be_had(graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    build_engines(request(graphs(), tmp_path / "ort"))
    assert not (tmp_path / "ort/rank-00/weights.safetensors").samefile(graphs() / "rank-00/weights.safetensors")
    run_random(open_session(tmp_path / "ort/rank-00/rank.onnx"))


def test_a_finished_rank_is_not_built_again(graphs, tmp_path: Path) -> None:
    asked = request(graphs("v3", 2), tmp_path / "ort")
    assert build_engines(asked).built == (0, 1)
    (tmp_path / "ort/rank-01/head.onnx").unlink()
    receipt = build_engines(asked)
    assert (receipt.built, receipt.kept) == ((1,), (0,))
    assert build_engines(replace(asked, max_batch=3)).built == (0, 1)


def test_ranks_are_built_one_by_one(graphs, tmp_path: Path) -> None:
    asked = request(graphs("v3", 2), tmp_path / "ort")
    for rank, complete in ((1, False), (0, True)):
        assert build_engines(replace(asked, rank=rank)).built == (rank,)
        whole = files.from_json(RankSet, json.loads((tmp_path / "ort/manifest.json").read_text()), "manifest")
        assert (whole.complete, whole.backend) == (complete, "ort")


def test_one_rank_needs_no_other_ranks_graphs(graphs, tmp_path: Path) -> None:
    source = Path(shutil.copytree(graphs("v3", 2), tmp_path / "graphs"))
    shutil.rmtree(source / "rank-00")
    assert build_engines(request(source, tmp_path / "ort", rank=1)).built == (1,)
    with pytest.raises(LoadError, match=r"rank-00 is missing(.|\n)*--rank 0"):
        build_engines(request(source, tmp_path / "ort"))


def test_a_dry_run_writes_nothing(graphs, tmp_path: Path) -> None:
    receipt = build_engines(request(graphs("v3", 2), tmp_path / "ort", dry_run=True))
    assert receipt.built == (0, 1)
    assert "would build" in receipt.summary()
    assert not (tmp_path / "ort").exists()


def test_limits_that_are_not_given_come_from_the_model(graphs, tmp_path: Path) -> None:
    build_engines(request(graphs(), tmp_path / "ort", max_context=None))
    assert rank_record(tmp_path / "ort").max_context == 128


@pytest.mark.parametrize(
    ("kind", "told", "options", "changes"),
    [
        (BuildError, "without weights(.|\n)*--graphs-only", {"weights": False}, {}),
        (BuildError, "bf16(.|\n)*--precision fp16 or fp32", {"precision": "bf16"}, {}),
        (BuildError, "--max-context 129(.|\n)*at most 128", {}, {"max_context": 129}),
        (LoadError, "no finished rank-07(.|\n)*finished are \\[0\\]", {}, {"rank": 7}),
        (UsageError, "no backend 'onnx'(.|\n)*ort, ort-cuda, tensorrt", {}, {"backend": "onnx"}),
        (UsageError, "no use for --compute-capability", {}, {"compute_capabilities": ("8.9",)}),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(graphs, tmp_path: Path, kind, told: str, options: dict, changes: dict) -> None:
    with pytest.raises(kind, match=told):
        build_engines(request(graphs(**options), tmp_path / "ort", **changes))
    assert not (tmp_path / "ort").exists()


@pytest.mark.parametrize("name", ["max_context", "max_batch"])
def test_limits_below_one_are_wrong_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is 0"):
        request(tmp_path, tmp_path, **{name: 0})


def test_a_folder_of_other_engines_is_left_alone(graphs, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    build_engines(request(graphs(), tmp_path / "ort"))
    before = (tmp_path / "ort/rank-00/manifest.json").read_bytes()
    with pytest.raises(BuildError, match="holds engines of the backend ort, not tensorrt-rtx"):
        build_engines(request(graphs(), tmp_path / "ort", backend="tensorrt-rtx"))
    with pytest.raises(BuildError, match=r"another plan or model \(tensor 1, pipeline 1; the graphs have tensor 2"):
        build_engines(request(graphs("v3", 2), tmp_path / "ort"))
    assert (tmp_path / "ort/rank-00/manifest.json").read_bytes() == before


def test_a_folder_of_graphs_is_no_place_for_engines(graphs, tmp_path: Path) -> None:
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    with pytest.raises(BuildError, match="holds graphs, not engines"):
        build_engines(request(source, source))


def test_damaged_graphs_are_refused(graphs, tmp_path: Path) -> None:
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    with open(source / "rank-00/weights.safetensors", "r+b") as file:
        file.truncate(4096)
    with pytest.raises(LoadError, match=r"weights.safetensors has 4096 bytes"):
        build_engines(request(source, tmp_path / "ort"))


def test_a_graph_that_onnxruntime_cannot_open_is_named_and_nothing_is_left(graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    path = source / "rank-00/rank.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOp"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(records, "check_files", lambda *_, **__: None)
    with pytest.raises(MoetrtError, match=r"cannot open rank.onnx(.|\n)*NoSuchOp"):
        build_engines(request(source, tmp_path / "ort"))
    assert not list((tmp_path / "ort").glob("**/*"))
