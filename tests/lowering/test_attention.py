"""Attention as one node of ours on ONNX Runtime: taken where it is what the kernel computes, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tolerances import TRANSFORMERS

from engines import load
from engines.backends.ort import CPU
from engines.backends.plugins import with_ops
from engines.build import EngineRequest, build_engines
from engines.runtime.serving import Request
from exporter.lowering import lower
from exporter.lowering.attention_ort import LATENT_ATTENTION
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank, Lowering

ABLE = with_ops(CPU)
PROMPTS = [[5, 9, 77, 3, 41], [2] * 70, list(range(2, 110))]


def built(engines: Callable[..., Path], library: Path, output: Path, *asked, **options) -> Path:
    build_engines(EngineRequest(engines(*asked, **options).parent / "graphs", "ort", output, max_context=128, max_batch=3, plugins=library))
    return output


def attentions(folder: Path) -> set[str]:
    record = files.read_record(EngineRank, folder / "rank-00" / records.MANIFEST)
    return {one.chosen for one in record.lowerings if one.op == LATENT_ATTENTION}


@pytest.mark.parametrize("family", ["v2-lite", "v2", "v3", "v3-noq"])
def test_every_family_attends_in_one_node(engines, family: str, ops_library: Path, tmp_path: Path) -> None:
    ours = built(engines, ops_library, tmp_path / "ort", family)
    assert attentions(ours) == {"packed_attention_ort"}
    ops = {node.op_type for path in ours.glob("rank-00/*.onnx") for node in onnx.load(path, load_external_data=False).graph.node}
    assert not ops & {"Softmax", "ScatterND", "RotaryEmbedding", "MatMul"}
    with load(ours) as chain, load(engines(family)) as standard:
        for prompt in PROMPTS:
            wanted, got = standard.logits(prompt), chain.logits(prompt)
            np.testing.assert_allclose(got, wanted, TRANSFORMERS.relative, TRANSFORMERS.absolute)
        assert chain.generate(PROMPTS[1], max_tokens=12, ignore_eos=True) == standard.generate(PROMPTS[1], max_tokens=12, ignore_eos=True)


def test_rows_of_different_lengths_go_together(engines, ops_library: Path, tmp_path: Path) -> None:
    with load(built(engines, ops_library, tmp_path / "ort")) as chain:
        alone = [chain.generate(prompt, max_tokens=10, ignore_eos=True) for prompt in PROMPTS]
        together = chain.generate_many([Request(prompt, 10, ignore_eos=True) for prompt in PROMPTS], max_batch=3)
        assert [one.tokens for one in sorted(together)] == alone


def test_the_expanded_form_is_left_as_it_is(engines, ops_library: Path, tmp_path: Path) -> None:
    ours = built(engines, ops_library, tmp_path / "ort", "v3", attention="naive")
    assert attentions(ours) == set()
    with load(ours) as chain, load(engines("v3")) as standard:
        wanted, got = standard.logits(PROMPTS[0]), chain.logits(PROMPTS[0])
        np.testing.assert_allclose(got, wanted, TRANSFORMERS.relative, TRANSFORMERS.absolute)


@pytest.fixture
def segment(engines) -> onnx.ModelProto:
    return onnx.load(engines("v3").parent / "graphs/rank-00/layers.1.attention.onnx", load_external_data=False)


def record_of(model: onnx.ModelProto) -> Lowering:
    (record,) = (one for one in lower(model, ABLE, {})[1] if one.op == LATENT_ATTENTION)
    return record


def only(model: onnx.ModelProto, op: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == op][place]


def constant(model: onnx.ModelProto, name: str, value) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, numpy_helper.to_array(tensor).dtype), name))


def attribute(node: onnx.NodeProto, name: str, value) -> None:
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def swap(node: onnx.NodeProto) -> None:
    node.output[:] = reversed(node.output)


FAULTS = {
    "another mask": lambda model: constant(model, only(model, "Where").input[2], -1e4),
    "a softmax over heads": lambda model: attribute(only(model, "Softmax"), "axis", 1),
    "halves rotated, not pairs": lambda model: attribute(only(model, "RotaryEmbedding"), "interleaved", 0),
    "keys rotated otherwise": lambda model: attribute(only(model, "RotaryEmbedding", 1), "interleaved", 0),
    "parts of queries exchanged": lambda model: swap(only(model, "Split")),
    "parts of entries exchanged": lambda model: swap(only(model, "Split", 1)),
    "heads and tokens exchanged": lambda model: attribute(only(model, "Transpose"), "perm", [0, 1, 2, 3]),
    "less of the latent": lambda model: constant(model, only(model, "Slice").input[2], [16]),
    "positions from one": lambda model: constant(model, only(model, "Range").input[0], 1),
    "the cache of the graph's input": lambda model: only(model, "Unsqueeze", -1).input.__setitem__(0, "cache") or [
        node.input.__setitem__(0, model.graph.input[-1].name) for node in model.graph.node if node.op_type == "Unsqueeze" and node.input[0] == only(model, "ScatterND").output[0]
    ],
}  # fmt: skip


def test_the_segment_as_it_is_is_taken(segment: onnx.ModelProto) -> None:
    assert record_of(segment).chosen == "packed_attention_ort"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_such_attention_is_left_as_it_is(segment: onnx.ModelProto, fault: str) -> None:
    FAULTS[fault](segment)
    record = record_of(segment)
    assert (record.chosen, record.refused) == ("as_written", {"packed_attention_ort": "it is not attention over latents as the kernel computes it"})


def test_a_cache_that_others_read_is_left_to_them(segment: onnx.ModelProto) -> None:
    written = only(segment, "ScatterND").output[0]
    segment.graph.node.append(helper.make_node("Identity", [written], ["seen"], name="/watch"))
    assert record_of(segment).refused == {"packed_attention_ort": "others read the cache"}


def test_positions_beyond_the_cache_are_refused_not_written(ops_library: Path) -> None:
    sizes = {"q": (1, 2, 24), "kv": (1, 2, 24), "cache": (1, 6, 24), "norm": (16,), "cos": (6, 4), "sin": (6, 4)}
    feeds = {name: np.ones(shape, np.float32) for name, shape in sizes.items()}
    panels = {name: np.zeros(size, np.uint8) for name, size in (("k_up", 16 * 16 * 2), ("v_up", 16 * 16 * 2))}
    node = helper.make_node("LatentAttention", ["q", "kv", "start", "cache", "norm", "cos", "sin", "k_up", "v_up"], ["y", "after"], domain="moetrt", heads=1, nope=16, rope=8, latent=16, value=16, bits=16, scale=1.0, epsilon=1e-6)
    kinds = {"q": onnx.TensorProto.FLOAT, "start": onnx.TensorProto.INT64, "k_up": onnx.TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info(name, kinds.get(name, kinds["k_up"] if name == "v_up" else kinds["q"]), None) for name in node.input]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("moetrt", 1)], ir_version=10)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ops_library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    _, after = session.run(None, {**feeds, **panels, "start": np.array([4])})
    assert after[0, :4].sum() == 4 * 24
    for start in (5, -1, 2**62):
        with pytest.raises(Exception, match=rf"row 0 has tokens from position {start} on; cache and tables have 6. Give a longer cache"):
            session.run(None, {**feeds, **panels, "start": np.array([start])})
