"""`compare --build-only`: sound pairs of engines are the same without running them, and each planted fault is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines.backends import load_backend, tensorrt
from engines.backends.tensorrt import Profile, profiles
from engines.build import EngineRequest, build_engines
from engines.compare.build_only import BuildComparison, compare_builds
from exporter.checkpoint.reader import stored_array
from exporter.errors import BuildError, LoadError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, GraphsRank
from exporter.plan.parallel import Plan

LAYERS = 2
"""One dense, one of experts: a plan builds in a second and a half."""


@pytest.fixture(scope="module")
def rtx() -> str:
    try:
        load_backend("tensorrt-rtx")
    except BuildError as error:
        pytest.skip(str(error))
    return "tensorrt-rtx"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``graphs(family, tensor, scheme, seed)``: portable graphs, float where no scheme is named; copy them to spoil them."""
    made: dict[tuple, Path] = {}

    def make(family: str = "v3", tensor: int = 1, scheme: str | None = None, seed: int = 0) -> Path:
        key = (family, tensor, scheme, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp("graphs")
            if scheme is None:
                checkpoint = tiny.write_checkpoint(folder / "checkpoint", tiny.tiny_config(family, num_hidden_layers=LAYERS), seed=seed)
                export_model(ExportRequest(checkpoint, folder / "graphs", Plan(tensor)))
            else:
                quantize(QuantizeRequest(make(family, tensor), folder / "graphs", table(family), scheme))
            made[key] = folder / "graphs"
        return made[key]

    def table(family: str) -> Path:
        key = (family, "table")
        if key not in made:
            folder = tmp_path_factory.mktemp("table")
            rows = [np.random.default_rng(seed).integers(2, 128, 30).tolist() for seed in range(12)]
            (folder / "prompts.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
            calibrate(CalibrationRequest(make(family), folder / "prompts.jsonl", folder / "table.json", method="max", min_tokens_per_expert=1))
            made[key] = folder / "table.json"
        return made[key]

    return make


@pytest.fixture(scope="module")
def built(graphs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``built(backend, family, tensor, scheme, seed)``: engines, made on first asking."""
    made: dict[tuple, Path] = {}

    def make(backend: str, *which) -> Path:
        if (backend, *which) not in made:
            made[backend, *which] = tmp_path_factory.mktemp("built") / backend
            build(graphs(*which), made[backend, *which], backend)
        return made[backend, *which]

    return make


def build(source: Path, output: Path, backend: str = "tensorrt-rtx", **options) -> Path:
    build_engines(EngineRequest(source, backend, output, max_context=32, max_batch=2, **options))
    return output


def spoil(source: Path, target: Path, change: Callable[[onnx.ModelProto], None], rank: int = 0) -> Path:
    """A copy of graphs whose rank was changed, with a manifest that knows of it."""
    folder = Path(shutil.copytree(source, target)) / records.rank_folder(rank)
    model = onnx.load(folder / "rank.onnx", load_external_data=False)
    change(model)
    (folder / "rank.onnx").write_bytes(model.SerializeToString())
    record = files.read_record(GraphsRank, folder / records.MANIFEST)
    files.write_record(folder / records.MANIFEST, replace(record, files=record.files | {"rank.onnx": records.stamp(folder / "rank.onnx")}))
    return target


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def checks(found: BuildComparison) -> set[tuple[str, int | None, str | None, str | None]]:
    assert (found.verdict, bool(found.faults)) in (("same", False), ("differ", True))
    return {(fault.check, fault.rank, fault.segment, fault.side) for fault in found.faults}


def messages(found: BuildComparison) -> str:
    return "\n".join(fault.message for fault in found.faults)


@pytest.mark.parametrize(
    ("family", "tensor", "scheme"),
    [("v3", 1, None), ("v3", 1, "int8"), ("v3", 2, "int8"), ("v2", 2, None), ("v2", 1, "int8"), ("v2-lite", 1, None), ("v2-lite", 2, "int8"), ("v3", 1, "int8-weights")],
)
def test_engines_of_the_same_graphs_are_the_same(rtx, built, family: str, tensor: int, scheme: str | None) -> None:
    found = compare_builds(built("ort", family, tensor, scheme), built(rtx, family, tensor, scheme))
    assert checks(found) == set(), found.summary()
    assert found.notes == ()
    for rank in found.ranks:
        promised = rank.became.get("int8", 0)
        assert bool(promised) == (scheme == "int8")
        assert rank.held_bytes is None or 1 <= rank.held_bytes / rank.weight_bytes < 1.01


@pytest.mark.parametrize(("tensor", "scheme"), [(1, None), (2, "int8")])
def test_plans_of_segments_are_the_same_too(rtx, graphs, built, tmp_path: Path, tensor: int, scheme: str | None) -> None:
    found = compare_builds(built("ort", "v3", tensor, scheme), build(graphs("v3", tensor, scheme), tmp_path / "segments", rtx, segments=True))
    assert checks(found) == set(), found.summary()
    assert all(bool(rank.became.get("int8")) == (scheme == "int8") for rank in found.ranks)


def test_graphs_stand_for_engines_and_two_builds_are_the_same(rtx, graphs, built) -> None:
    assert checks(compare_builds(graphs("v3", 1, "int8"), built(rtx, "v3", 1, "int8"))) == set()
    assert checks(compare_builds(built(rtx, "v3", 1, "int8"), built(rtx, "v3", 1, "int8"))) == set()


def test_a_rank_that_lost_an_expert_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for name in ("layers.1.moe_ffn.experts.gate_up", "layers.1.moe_ffn.experts.down"):
            tensor = initializer(model, name)
            length = next(entry for entry in tensor.external_data if entry.key == "length")
            length.value = str(int(length.value) * 15 // 16)
            tensor.dims[0] = 15

    found = compare_builds(built("ort", "v3", 1, None), build(spoil(graphs(), tmp_path / "graphs", change), tmp_path / "rtx"))
    where = (0, "layers.1.moe_ffn")
    assert checks(found) == {("tensors", *where, "right"), ("tensors", *where, None), ("bytes", *where, "right"), ("bytes", 0, "all", "right")}
    assert "layers.1.moe_ffn.experts.down is F32 [15, 64, 32], the plan says F32 [16, 64, 32]" in messages(found)


def test_a_product_without_its_pair_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        product, pair = (node(model, f"/layers.0/attention/o/{name}") for name in ("MatMul", "QuantizeLinear"))
        product.input[0] = pair.input[0]

    source = spoil(graphs("v3", 1, "int8"), tmp_path / "graphs", change)
    found = compare_builds(built("ort", "v3", 1, "int8"), build(source, tmp_path / "rtx"))
    assert ("products", 0, "layers.0.attention", "right") in checks(found)
    assert "layers.0.attention.o is multiplied by float inputs, int8 is promised" in messages(found)


def test_a_product_that_the_compiler_made_float_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    """The pair is there, with a scale that depends on the input: TensorRT-RTX multiplies in float, and says so in its list alone."""

    def change(model: onnx.ModelProto) -> None:
        pair = [node(model, f"/layers.0/attention/o/{name}") for name in ("QuantizeLinear", "DequantizeLinear")]
        place = list(model.graph.node).index(pair[0])
        sizes = (("Abs", [pair[0].input[0]], {}), ("ReduceMax", ["o.Abs"], {"keepdims": 0}), ("Mul", ["o.ReduceMax", pair[0].input[1]], {}))
        for number, (op, inputs, attributes) in enumerate(sizes):
            model.graph.node.insert(place + number, helper.make_node(op, inputs, [f"o.{op}"], name=f"/layers.0/attention/o/{op}", **attributes))
        for one in pair:
            one.input[1] = "o.Mul"

    source = spoil(graphs("v3", 1, "int8"), tmp_path / "graphs", change)
    found = compare_builds(built("ort", "v3", 1, "int8"), build(source, tmp_path / "rtx"))
    assert checks(found) == {("products", 0, "layers.0.attention", "right")}
    assert "layers.0.attention.o: int8 is promised, the compiler made" in messages(found)


def test_weights_that_are_float_where_int8_was_promised_are_named(rtx, graphs, built, tmp_path: Path) -> None:
    source = graphs("v3", 1, "int8-weights")

    def change(model: onnx.ModelProto) -> None:
        weights = source / "rank-00/weights.safetensors"
        for name in ("gate", "up", "down"):
            stored, segment = f"layers.0.dense_ffn.{name}", "/layers.0/dense_ffn/ffn"
            values = stored_array(weights, stored).astype(np.float32) * stored_array(weights, f"{stored}.scale")
            initializer(model, stored).CopyFrom(numpy_helper.from_array(values, stored))
            matrix = next(node for node in model.graph.node if stored in node.input and node.op_type == "DequantizeLinear")
            product = next(node for node in model.graph.node if matrix.output[0] in node.input)
            assert segment.rpartition("/")[0] in product.name
            product.input[1] = stored
            model.graph.node.remove(matrix)
            model.graph.initializer.remove(initializer(model, f"{stored}.scale"))

    found = compare_builds(built("ort", "v3", 1, "int8-weights"), build(spoil(source, tmp_path / "graphs", change), tmp_path / "rtx"))
    assert {("tensors", 0, "layers.0.dense_ffn", "right"), ("bytes", 0, "layers.0.dense_ffn", "right"), ("bytes", 0, "all", "right")} <= checks(found)
    assert "layers.0.dense_ffn.gate is F32 [64, 128], the plan says I8 or I4 [64, 128]" in messages(found)


def test_weights_that_are_stored_twice_are_noticed(rtx, graphs, built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wholly static profile costs: the reason why ours reaches to two tokens."""

    def static(*limits: int) -> tuple[Profile, ...]:
        prefill, decode = profiles(*limits)
        return prefill, replace(decode, lengths={dim: (high if dim == "context" else 1,) * 3 for dim, (_, _, high) in decode.lengths.items()})

    monkeypatch.setattr(tensorrt, "profiles", static)
    found = compare_builds(built("ort", "v3", 1, None), build(graphs(), tmp_path / "rtx"))
    assert ("bytes", 0, "all", "right") in checks(found)
    assert {check for check, *_ in checks(found)} == {"bytes"}


def test_a_segment_that_is_missing_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        kept = [node for node in model.graph.node if not node.name.startswith("/layers.0/dense_ffn/")]
        stored = [tensor for tensor in model.graph.initializer if not tensor.name.startswith("layers.0.dense_ffn.")]
        for node in kept:
            node.input[:] = [name.replace("layers.0.dense_ffn", "layers.0.attention") for name in node.input]
            # The residual before the first segment is the embedding itself.
            node.input[:] = ["embed.hidden" if name == "layers.0.attention.hidden" else name for name in node.input]
        for place, things in ((model.graph.node, kept), (model.graph.initializer, stored)):
            del place[:]
            place.extend(things)

    found = compare_builds(built("ort", "v3", 1, None), build(spoil(graphs(), tmp_path / "graphs", change), tmp_path / "rtx"))
    assert ("tensors", 0, "layers.0.dense_ffn", "right") in checks(found)
    assert "the whole segment is missing: 4 tensors" in messages(found)
    assert {segment for _, _, segment, _ in checks(found)} <= {"layers.0.dense_ffn", "all"}


def test_a_sum_that_is_missing_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        total = node(model, "/layers.1/attention/AllReduce")
        total.CopyFrom(helper.make_node("Identity", total.input, total.output, name=total.name))

    source = spoil(graphs("v2", 2), tmp_path / "graphs", change, rank=1)
    found = compare_builds(built("ort", "v2", 2, None), build(source, tmp_path / "rtx"))
    assert checks(found) == {("collectives", 1, "layers.1.attention", "right")}


def test_a_rank_from_another_checkpoint_is_named(rtx, built, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(built(rtx, "v2", 2, None), tmp_path / "mixed"))
    shutil.rmtree(mixed / "rank-01")
    shutil.copytree(built(rtx, "v2", 2, None, 1) / "rank-01", mixed / "rank-01")
    found = compare_builds(built("ort", "v2", 2, None), mixed)
    assert ("manifest", None, None, "right") in checks(found)
    assert "is of another checkpoint" in messages(found)
    assert ("tensors", 1, "layers.1.moe_ffn", None) in checks(found)
    assert not [fault for fault in found.faults if fault.rank == 0]


def test_a_rank_from_graphs_with_other_weights_is_named(rtx, graphs, built, tmp_path: Path) -> None:
    """Two experts have changed places in the file; every name, shape and size is as before."""
    source = Path(shutil.copytree(graphs(), tmp_path / "graphs"))
    array = stored_array(source / "rank-00/weights.safetensors", "layers.1.moe_ffn.experts.down")
    swapped = np.memmap(array.filename, array.dtype, "r+", array.offset, array.shape)
    swapped[[3, 4]] = swapped[[4, 3]]
    swapped.flush()
    found = compare_builds(built("ort", "v3", 1, None), build(source, tmp_path / "rtx"))
    assert checks(found) == {("tensors", 0, "layers.1.moe_ffn", None)}
    assert "layers.1.moe_ffn.experts.down has other contents on the right" in messages(found)


def test_what_the_manifests_say_must_agree(rtx, built, graphs, tmp_path: Path) -> None:
    found = compare_builds(built("ort", "v3", 1, None), built(rtx, "v3", 1, "int8"))
    assert "the quantisation's scheme differs: None on the left, int8 on the right" in messages(found)
    assert "the --max-context differs: 32 on the left, 16 on the right" in messages(compare_builds(built("ort", "v3", 1, None), longer(graphs(), tmp_path)))
    plans = compare_builds(built("ort", "v3", 1, "int8"), built("ort", "v3", 2, "int8"))
    assert checks(plans) == {("manifest", None, None, None)}
    assert any("held against its own plan alone" in note for note in plans.notes)


def longer(source: Path, folder: Path) -> Path:
    build_engines(EngineRequest(source, "ort", folder / "ort", max_context=16, max_batch=2))
    return folder / "ort"


def test_experts_must_lie_on_one_rank_each(built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built("ort", "v2", 2, None), tmp_path / "ort"))
    path = folder / "rank-01/manifest.json"
    record = files.read_record(EngineRank, path)
    files.write_record(path, replace(record, shard=replace(record.shard, experts=replace(record.shard.experts, start=9))))
    found = compare_builds(built("ort", "v2", 2, None), folder)
    assert "the ranks of stage 0 hold experts 0-7, 9-15: not each expert once" in messages(found)


def test_a_summary_fits_80_columns_and_ends_in_the_verdict(rtx, built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("left", built("ort", "v3", 1, None)), ("right", built(rtx, "v3", 1, "int8"))):
        (tmp_path / name).symlink_to(folder)
    found = compare_builds(Path("left"), Path("right"))
    assert max(map(len, found.summary().splitlines())) <= 80
    assert found.summary().splitlines()[-1].startswith("differ: ")
    assert set(json.loads(files.dump(found))) == {"verdict", "left", "right", "faults", "ranks", "notes"}


def test_engines_without_records_and_other_folders_are_refused(rtx, built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built(rtx, "v3", 1, None), tmp_path / "old"))
    record = files.read_record(EngineRank, folder / "rank-00/manifest.json")
    stamps = {name: stamp for name, stamp in record.files.items() if name != "rank.tensors.json"}
    files.write_record(folder / "rank-00/manifest.json", replace(record, files=stamps))
    with pytest.raises(LoadError, match=r"has no rank.tensors.json(.|\n)*build it again"):
        compare_builds(built("ort", "v3", 1, None), folder)
    with pytest.raises(LoadError, match="holds no finished rank"):
        compare_builds(tmp_path, folder)


def test_a_sum_that_no_schedule_has_is_named(engines, tmp_path):
    """Of ONNX Runtime's engines, whose graphs are cut at the collectives."""
    from faults import FAULTS, copy_engines

    folder = copy_engines(engines("v3", 2), tmp_path / "ort")
    FAULTS["an all-reduce missing"].plant(folder)
    made = compare_builds(engines("v3", 2).parent / "graphs", folder)
    assert made.verdict == "differ"
    assert {(fault.check, fault.segment, fault.side) for fault in made.faults} >= {("collectives", "layers.1.attention", "right")}
