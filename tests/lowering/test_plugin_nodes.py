"""Nodes of ours that are left for TensorRT's plugins: what they are given, and what is refused with a reason."""

from dataclasses import replace

import backends
import numpy as np
import onnx
import pytest
from lowered import with_derived
from suites.ops import CASES, Mixture, OpCase, blocked, quantized, route_case, sliced

from engines.backends.plugins import with_plugins
from exporter.lowering import lower
from exporter.lowering.plugin_tensorrt import PLUGINS
from exporter.ops import DOMAIN, attributes_of
from exporter.plan.capabilities import Capabilities

BARE = Capabilities("tensorrt", frozenset(), frozenset({"fp32", "fp16", "bf16"}), True, True, "tensorrt")
ABLE = with_plugins(BARE)
HALF = Mixture(5, hidden=64, dtype="float16")


def kept(case: OpCase) -> tuple[onnx.NodeProto, onnx.ModelProto]:
    lowered, (record,) = with_derived(backends.case_model(case), ABLE)
    assert record.chosen == "plugin_tensorrt"
    (node,) = lowered.graph.node
    return node, lowered


def test_a_route_is_kept_with_its_attributes_and_the_plugins_name() -> None:
    case = route_case("v3", 7)
    node, lowered = kept(case)
    assert (node.op_type, node.domain) == ("Route", DOMAIN)
    assert attributes_of(node) == {**case.attributes, "scale": pytest.approx(2.5), "plugin_version": "1", "plugin_namespace": DOMAIN}
    assert {entry.domain for entry in lowered.opset_import} == {"", DOMAIN}
    assert not lowered.functions


def test_float_experts_read_the_stored_weights_as_they_lie() -> None:
    node, lowered = kept(sliced(HALF, 2, 4))
    assert list(node.input) == ["x", "experts", "weights", "gate_up", "down"]
    assert {tensor.name for tensor in lowered.graph.initializer} == {"gate_up", "down"}


@pytest.mark.parametrize("activations", ["static", "token"])
def test_int8_weights_are_turned_and_nothing_else_is_changed(activations: str) -> None:
    case = quantized(HALF, 2, 4, activations)
    node, lowered = kept(case)
    stored = dict(zip(("x", "experts", "weights", "gate_up", "gate_up_scale", "down", "down_scale", "x_scale", "h_scale"), case.inputs(), strict=False))
    made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}
    assert [name.removesuffix(".rows") for name in node.input] == list(stored)
    for name in ("gate_up", "down"):
        assert np.array_equal(made[f"{name}.rows"], stored[name].swapaxes(1, 2))
    assert made.keys() == {"gate_up.rows", "down.rows"} | {name for name in stored if name.endswith("scale")}


def test_how_many_experts_there_are_is_what_the_route_chooses_among() -> None:
    """A graph of both: the experts' plugin cuts rows by the expected number of an expert."""
    route, experts = backends.case_model(route_case("v3", 7)), backends.case_model(sliced(replace(HALF, top_k=8), 0, 4))
    graph = experts.graph
    for values in (graph.input,):
        values_kept = [value for value in values if value.name == "x"]
        del values[:]
        values.extend(values_kept)
    nodes = [*route.graph.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.extend(route.graph.input)
    graph.initializer.extend(route.graph.initializer)
    lowered, _ = lower(experts, ABLE, {})
    assert attributes_of(lowered.graph.node[-1])["all_experts"] == 256
    alone, _ = lower(backends.case_model(sliced(HALF, 2, 4)), ABLE, {})
    assert attributes_of(alone.graph.node[0])["all_experts"] == 6


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (sliced(replace(HALF, dtype="float32"), 0, 8), "does not compute in fp32"),
        (sliced(replace(HALF, width=24), 0, 8), "takes multiples of 16, not the width 24"),
        (quantized(replace(HALF, hidden=40), 0, 8, "static"), "takes multiples of 16, not the hidden size 40"),
        (quantized(HALF, 0, 8, "float"), "these activations stay float"),
        (blocked(HALF, 0, 8, 16), "these activations stay float"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_the_plugins_do_not_take_is_refused_with_a_reason(case: OpCase, why: str) -> None:
    _, (record,) = lower(backends.case_model(case), ABLE, {})
    assert why in record.refused["plugin_tensorrt"]
    assert record.chosen == "inline"


def test_without_the_library_and_without_someone_to_turn_weights_there_is_no_plugin() -> None:
    _, (record,) = lower(backends.case_model(route_case("v3", 7)), BARE, {})
    assert record.refused["plugin_tensorrt"] == "tensorrt has no moetrt.Route (a plugin of TensorRT's: build --plugins)"
    _, (record,) = lower(backends.case_model(quantized(HALF, 0, 8, "static")), ABLE)
    assert "nobody writes them here" in record.refused["plugin_tensorrt"]


def test_every_op_with_a_plugin_has_cases_that_become_it() -> None:
    taken = {case.op for case in CASES if case.op in PLUGINS and lower(backends.case_model(case), ABLE, {})[1][0].chosen == "plugin_tensorrt"}
    assert taken == set(PLUGINS)
