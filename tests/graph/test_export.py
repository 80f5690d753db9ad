"""Portable graphs and weight files: what is written is whole, named, and made of the checkpoint's own bytes."""

import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch

from exporter.checkpoint.reader import SAMPLE
from exporter.errors import ExportError, MoetrtError
from exporter.graph.export import ExportRequest, export_model, plan_export
from exporter.models import read_model
from exporter.models.weights import file_bytes
from exporter.plan import manifest as records
from exporter.plan.manifest import Assembly, GraphsRank
from exporter.plan.parallel import Plan, shard
from exporter.plan.schedule import AllGather, AllReduce, Launch, Receive, Send

FAMILIES = tuple(tiny.FAMILIES)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """``exported(family, tensor, pipeline, …)``: a graphs folder, made on first asking."""
    made = {}

    def make(family: str, tensor: int = 1, pipeline: int = 1, dtype: str = "bf16", **options) -> Path:
        key = (family, tensor, pipeline, dtype, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("graphs") / "graphs"
            export_model(ExportRequest(checkpoint(family, dtype), made[key], Plan(tensor, pipeline), **options))
        return made[key]

    return make


def models(folder: Path) -> dict[Path, onnx.ModelProto]:
    return {path: onnx.load(path, load_external_data=False) for path in sorted(folder.glob("rank-*/*.onnx"))}


@pytest.mark.parametrize("family", FAMILIES)
def test_portable_files_pass_the_checker_with_full_shape_inference(exported, family):
    for path in models(exported(family, 2, 2)):
        onnx.checker.check_model(str(path), full_check=True)


def test_no_weight_lies_in_any_graph(exported):
    for path, model in models(exported("v3", 2)).items():
        for tensor in model.graph.initializer:
            inside = tensor.data_location != onnx.TensorProto.EXTERNAL
            assert not inside or tensor.ByteSize() < 200, f"{path}: {tensor.name}"


def test_names_are_paths_of_modules_and_know_no_rank(exported):
    names = [{node.name for node in onnx.load(exported("v3", tensor) / "rank-00/rank.onnx", load_external_data=False).graph.node} for tensor in (1, 2)]
    assert "/layers.3/attention/q_b/MatMul" in names[0]
    assert "/layers.3/moe_ffn/experts/Experts" in names[0]
    assert {name for name in names[1] - names[0] if "All" not in name and "/embed/" not in name} == set()


def test_segments_hold_the_whole_graphs_nodes_and_no_other(exported):
    folder = exported("v2", 2) / "rank-01"
    record = records.read_ranks(GraphsRank, folder.parent)[1]
    pieces = [onnx.load(folder / file, load_external_data=False) for file in record.segments.graphs.values()]
    whole = onnx.load(folder / "rank.onnx", load_external_data=False)
    cut = [node.name for piece in pieces for node in piece.graph.node]
    assert cut == [node.name for node in whole.graph.node if node.op_type not in ("AllReduce", "AllGather")]


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("form", ["whole", "segments"])
def test_a_schedule_never_reads_before_it_writes(exported, tensor, pipeline, form):
    sent = {}
    for rank, record in records.read_ranks(GraphsRank, exported("v3", tensor, pipeline)).items():
        given = {"token_ids", "start", "select"}
        values = walk(getattr(record, form), given, sent.get(rank - tensor, ()))
        sent[rank] = values["sent"]
        assert ("logits" in values["made"]) == record.shard.last


def walk(assembly: Assembly, given: set[str], received: tuple[str, ...]) -> dict:
    made, sent = set(given), ()
    for step in assembly.steps:
        match step:
            case Launch(graph):
                signature = assembly.signatures[graph]
                needed = {tensor.name for tensor in signature.inputs} - {state.input for state in signature.states}
                assert needed <= made, f"{graph} reads {needed - made}"
                made |= {tensor.name for tensor in signature.outputs}
            case AllReduce(value, result) | AllGather(value, result):
                assert value in made
                made.add(result)
            case Receive(values):
                assert values == received
                made |= set(values)
            case Send(values):
                assert set(values) <= made
                sent = values
    return {"made": made, "sent": sent}


def test_safetensors_reads_the_weights_file_and_finds_the_same_bytes_at_the_graphs_offsets(exported):
    from safetensors.numpy import load_file

    for path, model in models(exported("v3", 2)).items():
        weights = path.with_name("weights.safetensors")
        tensors = load_file(weights)
        data = weights.read_bytes()
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                start, length = int(place["offset"]), int(place["length"])
                assert start % 4096 == 0
                assert data[start : start + length] == tensors[tensor.name].tobytes(), tensor.name


def test_stored_tensors_are_slices_of_the_checkpoints(exported, checkpoint):
    from safetensors.numpy import load_file

    hf = {name: tensor.float().numpy() for name, tensor in tiny.read_folder(checkpoint("v3")).items()}
    stored = load_file(exported("v3", 2) / "rank-01/weights.safetensors")
    q_b = hf["model.layers.2.self_attn.q_b_proj.weight"]
    np.testing.assert_array_equal(stored["layers.2.attention.q_b"], q_b[len(q_b) // 2 :].T)
    down = hf["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(stored["layers.0.dense_ffn.down"], down[:, down.shape[1] // 2 :].T)
    kv_b = hf["model.layers.1.self_attn.kv_b_proj.weight"].reshape(4, 32, -1)[2:]
    np.testing.assert_array_equal(stored["layers.1.attention.k_up"], kv_b[:, :16])
    np.testing.assert_array_equal(stored["layers.1.attention.v_up"], kv_b[:, 16:].transpose(0, 2, 1))
    gate, up = (hf[f"model.layers.3.mlp.experts.9.{part}_proj.weight"] for part in ("gate", "up"))
    np.testing.assert_array_equal(stored["layers.3.moe_ffn.experts.gate_up"][1, 0::2], gate)
    np.testing.assert_array_equal(stored["layers.3.moe_ffn.experts.gate_up"][1, 1::2], up)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_checkpoint_value_is_in_some_ranks_file(exported, checkpoint, family, precision):
    """Parts sum to the whole: what two ranks store, replicated tensors once, is the checkpoint's values."""
    from safetensors import safe_open

    config = read_model(checkpoint(family)).config
    total, replicated = 0, 0
    for rank in range(2):
        with safe_open(exported(family, 2, precision=precision) / records.rank_folder(rank) / "weights.safetensors", "np") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(("__pad", "rope.")):
                    continue
                count = int(np.prod(file.get_slice(name).get_shape()))
                whole = name.rsplit(".", 1)[-1] in ("norm", "q_norm", "kv_norm", "q_a", "kv_a", "router", "router_bias")
                total += count
                replicated += count if whole and rank else 0
    assert total - replicated == sum(tensor.numel() for tensor in tiny.read_folder(checkpoint(family)).values())
    assert config.family.startswith("deepseek")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plan_states_the_files_exact_size(exported, checkpoint, precision):
    config = read_model(checkpoint("v3")).config
    for rank in range(4):
        file = exported("v3", 2, 2, precision=precision) / records.rank_folder(rank) / "weights.safetensors"
        assert file.stat().st_size == file_bytes(config, shard(config, Plan(2, 2), rank), precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_fp8_is_dequantised_in_float32_and_rounded_once_to_bf16(checkpoint, exported, tmp_path, precision):
    config = json.loads((checkpoint("v3", "fp8") / "config.json").read_text())
    config.pop("quantization_config")
    cast = tiny.write_folder(tmp_path / "cast", config, tiny.cast_bf16(tiny.read_folder(checkpoint("v3", "fp8"))))
    export_model(ExportRequest(cast, tmp_path / "graphs", Plan(4), precision=precision))
    for rank in range(4):
        mine = exported("v3", 4, dtype="fp8", precision=precision) / records.rank_folder(rank) / "weights.safetensors"
        assert mine.read_bytes() == (tmp_path / "graphs" / records.rank_folder(rank) / "weights.safetensors").read_bytes()


def test_graphs_only_needs_config_alone_and_gives_the_same_graphs(exported, checkpoint, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((checkpoint("v3") / "config.json").read_bytes())
    export_model(ExportRequest(tmp_path / "model", tmp_path / "graphs", Plan(2), graphs_only=True))
    for path, model in models(tmp_path / "graphs").items():
        assert model.graph == onnx.load(exported("v3", 2) / path.parent.name / path.name, load_external_data=False).graph
    assert not list(tmp_path.glob("graphs/rank-*/weights.safetensors"))


def test_a_finished_rank_is_not_made_again_and_a_damaged_one_is(checkpoint, tmp_path):
    request = ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(2))
    assert export_model(request).todo == (0, 1)
    assert export_model(request).kept == (0, 1)
    (tmp_path / "graphs/rank-01/weights.safetensors").write_bytes(b"short")
    receipt = export_model(request)
    assert (receipt.todo, receipt.kept) == ((1,), (0,))


def test_a_checkpoint_that_was_written_since_is_read_again(spoiled, tmp_path):
    """Fingerprints look at the ends of tensors alone."""
    folder = spoiled("v3")
    request = ExportRequest(folder, tmp_path / "graphs", Plan(2))
    made = export_model(request)
    (file,) = list(folder.glob("*00001-of*.safetensors"))
    info = max((info for info in made.origin.source.checkpoint.headers.values() if info.file == file), key=lambda info: info.bytes)
    data = bytearray(file.read_bytes())
    data[info.offset + info.bytes // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(time.time_ns() + 10**9,) * 2)
    again = export_model(request)
    assert info.bytes > 2 * SAMPLE and again.origin.record.fingerprint == made.origin.record.fingerprint
    assert again.todo == (0, 1)


def test_files_of_others_are_not_written_over(checkpoint, tmp_path):
    (tmp_path / "graphs/rank-00").mkdir(parents=True)
    (tmp_path / "graphs/rank-00/results.csv").write_text("1, 2")
    with pytest.raises(ExportError, match=r"rank-00/results\.csv is there and is none of moetrt's files"):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1)))
    assert (tmp_path / "graphs/rank-00/results.csv").read_text() == "1, 2"


@pytest.mark.parametrize(
    ("change", "told"),
    [({"plan": Plan(1, 2)}, "another plan"), ({"precision": "fp16"}, r"another precision \(fp32\) than rank-01 would be \(fp16\)"), ({"attention": "naive"}, "another attention form")],
)
def test_a_rank_that_would_spoil_the_set_that_is_there_is_refused(checkpoint, tmp_path, change, told):
    asked = {"model": checkpoint("v3"), "output": tmp_path / "graphs", "plan": Plan(2)}
    export_model(ExportRequest(**asked))
    with pytest.raises(ExportError, match=told):
        export_model(ExportRequest(**asked | change, rank=1))
    assert export_model(ExportRequest(**asked)).todo == ()
    assert export_model(ExportRequest(**asked | change)).kept == (), "all ranks at once take the set's place"


def test_weights_are_not_dropped_for_graphs_alone(checkpoint, tmp_path):
    export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1)))
    with pytest.raises(ExportError, match="rank-00 has weights, which --graphs-only would remove"):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1), graphs_only=True))


def test_what_is_left_out_and_what_is_removed_is_told(spoiled, tmp_path):
    from safetensors.torch import save_file

    folder = spoiled("v3")
    save_file({"model.layers.4.enorm.weight": torch.zeros(2)}, folder / "extra.safetensors")
    export_model(ExportRequest(folder, tmp_path / "graphs", Plan(4)))
    told = plan_export(ExportRequest(folder, tmp_path / "graphs", Plan(2))).summary(done=False)
    assert "2 rank(s) would be written, 2 of a wider plan removed" in told
    assert told.endswith("unused: 1 tensor(s), multi-token prediction, beyond num_hidden_layers")


def test_ranks_exported_apart_make_the_set_that_is_exported_at_once(checkpoint, exported, tmp_path):
    for rank in (1, 0):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(2), rank=rank))
    for path in sorted(exported("v3", 2).rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "graphs" / path.relative_to(exported("v3", 2))).read_bytes(), path


def test_a_narrower_plan_removes_the_ranks_it_does_not_have(checkpoint, tmp_path):
    for tensor in (4, 2):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(tensor)))
    records.require_set(records.read_ranks(GraphsRank, tmp_path / "graphs"), tmp_path / "graphs")


def test_an_interrupted_export_leaves_nothing_and_can_be_run_again(checkpoint, tmp_path):
    pieces = []

    def stop(count: int) -> None:
        pieces.append(count)
        if len(pieces) > 20:
            raise KeyboardInterrupt

    request = ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1))
    with pytest.raises(KeyboardInterrupt):
        export_model(request, stop)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert export_model(request).todo == (0,)


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    import errno

    from exporter.graph import weights_file

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights_file.Hashing, "write", full)
    with pytest.raises(ExportError, match="No space left"):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_values_beyond_float16_are_refused_by_name(spoiled, tmp_path):
    folder = spoiled("v3")
    tensors = tiny.read_folder(folder)
    tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = 1e6
    for file in folder.glob("*.safetensors"):
        file.unlink()
    tiny.write_folder(folder, json.loads((folder / "config.json").read_text()), tensors)
    with pytest.raises(ExportError, match=r"layers.1.attention.o .*beyond float16"):
        export_model(ExportRequest(folder, tmp_path / "graphs", Plan(1), precision="fp16"))
    assert [path for path in (tmp_path / "graphs").rglob("*") if path.is_file()] == []


def test_an_illegal_split_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(MoetrtError, match="3"):
        export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(3)))
    assert not (tmp_path / "graphs").exists()


def test_tied_embeddings_give_the_head_its_rows(tmp_path):
    from safetensors.numpy import load_file

    config = tiny.tiny_config("v3", tie_word_embeddings=True)
    folder = tiny.write_checkpoint(tmp_path / "model", config)
    export_model(ExportRequest(folder, tmp_path / "graphs", Plan(2)))
    stored = load_file(tmp_path / "graphs/rank-01/weights.safetensors")
    np.testing.assert_array_equal(stored["head.weight"], stored["embed.weight"].T)
