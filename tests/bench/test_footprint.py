"""Bytes of a decode step: the arithmetic by hand, and what is read from graphs."""

import onnx
import pytest
from onnx import TensorProto, helper

from engines.bench.footprint import (
    EXPERTS,
    ROWS,
    WHOLE,
    Footprint,
    Mapped,
    mapped,
    read_footprint,
    step_bytes,
    tensor_bytes,
)
from engines.runtime.loading import read_set

MODEL = Footprint(
    weights=(Mapped("head.weight", 1000, WHOLE, 10), Mapped("embed.weight", 800, ROWS, 100), Mapped("layers.1.moe_ffn.experts.down", 6400, EXPERTS, 64)),
    cache_bytes_per_token=4,
    chosen=8 / 64,
)


def test_one_row_reads_its_experts_its_row_and_its_cache():
    assert step_bytes(MODEL, batch=1, positions=0) == 1000 + 8 + 6400 * 8 / 64
    assert step_bytes(MODEL, batch=1, positions=160) == 1000 + 8 + 800 + 160 * 4


def test_rows_share_what_is_whole_and_some_of_their_experts():
    two = step_bytes(MODEL, batch=2, positions=10)
    assert two == pytest.approx(1000 + 2 * 8 + 6400 * (1 - (7 / 8) ** 2) + 2 * 10 * 4)
    assert two < 2 * step_bytes(MODEL, batch=1, positions=10)


def test_many_rows_read_every_weight_once():
    assert step_bytes(MODEL, batch=1000, positions=0) == pytest.approx(MODEL.weight_bytes)


def test_a_dense_model_has_no_experts_to_choose():
    assert step_bytes(Footprint(MODEL.weights[:1], 4, 0.0), batch=3, positions=0) == 1000


@pytest.mark.parametrize(("kind", "size"), [("FLOAT", 60), ("BFLOAT16", 30), ("UINT8", 15), ("INT4", 8), ("UINT4", 8)])
def test_a_tensors_bytes_follow_its_dtype(kind, size):
    assert tensor_bytes(TensorProto(name="x", data_type=TensorProto.DataType.Value(kind), dims=[3, 5])) == size


def external(name: str, shape: list[int], offset: int, length: int | None = None, kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.safetensors"), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(nodes: list[onnx.NodeProto], tensors: list[TensorProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "graph", [], [], tensors)


def test_what_a_node_does_with_a_tensor_decides_how_it_is_read():
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["x"]),
        helper.make_node("MatMulNBits", ["x", "head.weight", "head.scale"], ["y"], domain="com.microsoft"),
        helper.make_node("QMoE", ["x", "p", "layers.1.moe_ffn.experts.down.rows"], ["z"], domain="com.microsoft"),
    ]
    tensors = [
        external("embed.weight", [100, 2], 0),
        external("head.weight", [10, 1, 16], 4096, length=160, kind=TensorProto.UINT8),
        external("head.scale", [10], 8192),
        external("layers.1.moe_ffn.experts.down.rows", [4, 8, 2], 12288, kind=TensorProto.UINT8),
        external("nobody.reads.this", [1000], 16384),
    ]
    found = {weight.name: (weight.read, weight.bytes) for _, weight in mapped(graph(nodes, tensors), experts=4)}
    assert found == {
        "embed.weight": (ROWS, 800),
        "head.weight": (WHOLE, 160),
        "head.scale": (WHOLE, 40),
        "layers.1.moe_ffn.experts.down.rows": (EXPERTS, 64),
    }


def test_a_table_that_is_also_multiplied_is_read_whole():
    nodes = [helper.make_node("Gather", ["tied", "ids"], ["x"]), helper.make_node("MatMul", ["x", "tied"], ["y"])]
    assert [weight.read for _, weight in mapped(graph(nodes, [external("tied", [8, 8], 0)]), experts=4)] == [WHOLE]


@pytest.mark.parametrize("tensor", [1, 2])
def test_engines_of_any_split_map_the_models_weights(engines, tensor):
    folder = engines("v3", tensor)
    ranks = read_set(folder)
    found, config = read_footprint(folder, ranks), ranks[0].config
    experts = [weight for weight in found.weights if weight.read == EXPERTS]
    of_one = 3 * config.hidden * config.expert_width * 4
    assert sum(weight.bytes for weight in experts) == (config.layers - config.dense_layers) * config.experts * of_one
    assert found.cache_bytes_per_token == tensor * config.layers * config.latent * 4
    rows = {weight.name for weight in found.weights if weight.read == ROWS}
    assert rows == {"embed.weight", "rope.cos", "rope.sin"}
    assert sum(record.files["weights.safetensors"].bytes for record in ranks.values()) > found.weight_bytes
