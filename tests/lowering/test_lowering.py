"""Every lowering against the function body that it replaces, and what it refuses."""

from dataclasses import replace

import backends
import numpy as np
import onnx
import pytest
from lowered import with_derived
from onnx import TensorProto, helper
from suites.ops import (
    CASES,
    EXPERT_CASES,
    QUANTIZED_CASES,
    Mixture,
    OpCase,
    blocked,
    quantized,
    random,
    sliced,
)
from tolerances import BY_DTYPE, FLOAT32_ORDER, LOG_ROUTING

from engines.backends import ort
from exporter.errors import BuildError
from exporter.lowering import LOWERINGS, lower
from exporter.lowering.attention_ort import LATENT_ATTENTION
from exporter.lowering.linear_ort import LINEAR
from exporter.lowering.moe_ort import MOE_ORT
from exporter.lowering.packed_ort import FLOAT_LINEAR
from exporter.lowering.rewrite import Context, scope_of
from exporter.lowering.unsigned import unsigned_activations
from exporter.ops import DOMAIN, OPS
from exporter.plan.capabilities import Capabilities

NOTHING = Capabilities("bare", frozenset(), frozenset({"fp32"}), False, False, "none")
ORT = replace(NOTHING, backend="ort", kernels=ort.CPU.kernels - {"com.microsoft.MoEGroupRouter", "MatMulInteger"}, kernel_dtypes=ort.CPU.kernel_dtypes)
INTEGERS = replace(ORT, kernels=ORT.kernels | {"MatMulInteger"})
TENSORRT = replace(NOTHING, backend="tensorrt", kernels=frozenset({"trt.DistCollective"}), collectives_inside=True)

runnable = [case for case in CASES if "bfloat16" not in case.name]


def named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.node[0].name = name
    return model


@pytest.mark.parametrize("case", runnable, ids=lambda case: case.name)
def test_inlined_body_equals_the_function(case: OpCase) -> None:
    model = backends.case_model(case)
    lowered, records = lower(model, NOTHING)
    assert [record.chosen for record in records] == ["identity" if "all_" in case.name else "inline"]
    assert not lowered.functions
    assert all(node.domain == "" for node in lowered.graph.node)
    for one, other in zip(*(backends.run_onnxruntime(it, backends.feeds_of(case)) for it in (lowered, model)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", [case for case in EXPERT_CASES if case in runnable], ids=lambda case: case.name)
def test_moe_kernel_equals_the_function(case: OpCase) -> None:
    model = backends.case_model(case)
    lowered, (record,) = lower(model, ORT)
    assert record.chosen == "moe_ort"
    assert set(record.refused) == {"packed_experts_ort"}
    one, other = (backends.run_onnxruntime(it, backends.feeds_of(case))[0] for it in (lowered, model))
    tolerance = LOG_ROUTING if one.dtype == np.float32 else BY_DTYPE["float16"]
    np.testing.assert_allclose(np.float64(one), np.float64(other), tolerance.relative, tolerance.absolute)


def test_moe_kernel_gives_exact_zeros_to_tokens_of_other_ranks() -> None:
    case = sliced(Mixture(5), 4, 4, all_on=3)
    lowered, _ = lower(backends.case_model(case), ORT)
    assert not backends.run_onnxruntime(lowered, backends.feeds_of(case))[0].any()


def test_moe_kernel_takes_large_and_vanishing_weights() -> None:
    def inputs() -> tuple[np.ndarray, ...]:
        x, chosen, weights, *rest = Mixture(17).inputs()
        weights[:, 0], weights[:, 1], weights[:, 2] = 16, 1e-12, 0
        return x, chosen, weights, *rest

    case = OpCase("", "Experts", inputs, {"first_expert": 0})
    lowered, _ = lower(backends.case_model(case), ORT)
    wanted = OPS["Experts"].reference(*inputs(), first_expert=0)
    got = backends.run_onnxruntime(lowered, backends.feeds_of(case))[0]
    np.testing.assert_allclose(got / 16, wanted / 16, LOG_ROUTING.relative, LOG_ROUTING.absolute)


WEIGHT_ONLY = [quantized(Mixture(tokens), first, 4, "float", on) for tokens, first, on in ((0, 0, None), (1, 0, None), (17, 4, None), (5, 4, 3), (5, 0, 3))]
WEIGHT_ONLY += [quantized(Mixture(17, dtype="float16"), 2, 4, "float"), blocked(Mixture(17, hidden=256, width=128, dtype="float16"), 2, 4, 128)]
WEIGHT_ONLY += [blocked(Mixture(tokens, hidden=64, width=64), first, 4, block) for tokens, first, block in ((1, 0, 32), (17, 4, 32), (17, 2, 64))]


@pytest.mark.parametrize("case", WEIGHT_ONLY, ids=lambda case: case.name)
def test_qmoe_kernel_equals_the_function(case: OpCase) -> None:
    model = backends.case_model(case)
    lowered, (record,) = with_derived(model, ORT)
    assert record.chosen == "qmoe_ort"
    assert {tensor.name for tensor in lowered.graph.initializer if tensor.name in OPS["QuantizedExperts"].inputs} == set(), "no weight twice"
    one, other = (backends.run_onnxruntime(it, backends.feeds_of(case))[0] for it in (lowered, model))
    tolerance = LOG_ROUTING if one.dtype == np.float32 else BY_DTYPE["float16"]
    np.testing.assert_allclose(np.float64(one), np.float64(other), tolerance.relative, tolerance.absolute)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (quantized(Mixture(3), 0, 8, "static"), "takes float activations; these are rounded by static scales"),
        (quantized(Mixture(3), 0, 8, "token"), "by token scales"),
        (blocked(Mixture(3, hidden=64, width=32), 0, 8, 16), "4-bit weights with a scale for 16 inputs"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_qmoe_kernel_refuses_what_it_would_compute_otherwise(case: OpCase, why: str) -> None:
    _, (record,) = lower(backends.case_model(case), ORT, {})
    assert record.chosen == "inline"
    assert why in record.refused["qmoe_ort"]


INT8 = [case for case in QUANTIZED_CASES if case.attributes["activations"] in ("static", "token") and "float32" in case.name]


@pytest.mark.parametrize("limit", ["few", "many"])
@pytest.mark.parametrize("case", INT8, ids=lambda case: case.name)
def test_both_branches_equal_the_function(case: OpCase, limit: str) -> None:
    """Whatever the number of tokens: the limit is put below and above it. Activations are unsigned, as in an engine."""
    model = backends.case_model(case)
    lowered, (record,) = lower(model, INTEGERS, {})
    assert record.chosen == "gather_ort"
    for tensor in lowered.graph.initializer:
        if tensor.name.endswith("few.limit"):
            tensor.CopyFrom(backends.tensor(tensor.name, np.array(10**6 if limit == "few" else -1)))
    unsigned_activations(lowered)
    one, other = (backends.run_onnxruntime(it, backends.feeds_of(case))[0] for it in (lowered, model))
    np.testing.assert_allclose(np.float64(one), np.float64(other), FLOAT32_ORDER.relative, FLOAT32_ORDER.absolute)


def test_few_pairs_are_gathered_and_many_are_not() -> None:
    lowered, _ = lower(backends.case_model(quantized(Mixture(1), 0, 8, "static")), INTEGERS, {})
    limits = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer if tensor.name.endswith("few.limit")}
    assert list(limits.values()) == [4]
    branches = {attribute.name: attribute.g for node in lowered.graph.node if node.op_type == "If" for attribute in node.attribute}
    assert "MatMulInteger" in {node.op_type for node in branches["then_branch"].node}
    assert "MatMulInteger" not in {node.op_type for node in branches["else_branch"].node}


def test_gathering_refuses_float16_whose_sums_would_overflow() -> None:
    _, (record,) = lower(backends.case_model(quantized(Mixture(3, dtype="float16"), 0, 8, "static")), INTEGERS, {})
    assert (record.chosen, record.refused["gather_ort"]) == ("inline", "sums of integers are scaled in float32, not FLOAT16")


def test_no_tensor_is_derived_where_nobody_makes_it() -> None:
    _, (record,) = lower(backends.case_model(quantized(Mixture(3), 0, 8, "float")), ORT)
    assert "nobody writes them here" in record.refused["qmoe_ort"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_lowered_parts_sum_to_the_whole(ranks: int) -> None:
    mixture = Mixture(17)
    count = mixture.experts // ranks
    cases = [sliced(mixture, rank * count, count) for rank in range(ranks)]
    parts = [backends.run_onnxruntime(lower(backends.case_model(case), ORT)[0], backends.feeds_of(case))[0] for case in cases]
    np.testing.assert_allclose(sum(parts), OPS["Experts"].reference(*mixture.inputs(), first_expert=0), *_pair(LOG_ROUTING))


def _pair(tolerance) -> tuple[float, float]:
    return tolerance.relative, tolerance.absolute


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("no com.microsoft.MoE", {"capabilities": NOTHING}),
        ("not BFLOAT16", {"dtype": "bfloat16"}),
        ("local experts is not known", {"drop": "gate_up"}),
        ("per token is not known", {"drop": "experts"}),
    ],
)
def test_moe_kernel_refuses_with_a_reason(why: str, change: dict) -> None:
    model = backends.case_model(sliced(Mixture(3, dtype=change.get("dtype", "float32")), 0, 8))
    graph = model.graph
    for values in (graph.initializer, graph.input):
        kept = [value for value in values if value.name != change.get("drop")]
        del values[:]
        values.extend(kept)
    refusal = MOE_ORT.refuses(graph.node[0], Context(graph, change.get("capabilities", ORT)))
    assert why in refusal.reason


def test_a_refusal_is_recorded_beside_the_choice() -> None:
    _, (record,) = lower(named(backends.case_model(sliced(Mixture(3), 0, 8)), "/layers.3/moe_ffn/experts/Experts"), TENSORRT)
    assert (record.node, record.op, record.chosen) == ("/layers.3/moe_ffn/experts/Experts", "Experts", "inline")
    assert record.refused["moe_ort"] == "tensorrt has no com.microsoft.MoE"


def test_every_op_has_a_lowering_table() -> None:
    assert set(LOWERINGS) == {*OPS, LINEAR, FLOAT_LINEAR, LATENT_ATTENTION}


@pytest.mark.parametrize(
    ("name", "op", "scope"),
    [
        ("/layers.3/moe_ffn/experts/Experts", "Experts", "/layers.3/moe_ffn/experts"),
        ("/layers.3/moe_ffn/Route", "Route", "/layers.3/moe_ffn/route"),
        ("/layers.3/moe_ffn/Route_1", "Route", "/layers.3/moe_ffn/route_1"),
        ("/op", "Route", "/op"),
        ("", "Route", "/route"),
    ],
)
def test_a_replacement_is_named_under_its_node(name: str, op: str, scope: str) -> None:
    assert scope_of(helper.make_node(op, [], [], name=name)).path == scope


def test_inlined_names_are_unique_and_under_the_node() -> None:
    model = named(backends.case_model(sliced(Mixture(3), 0, 8)), "/layers.3/moe_ffn/experts/Experts")
    graph = lower(model, NOTHING)[0].graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert "/layers.3/moe_ffn/experts/MatMul" in names
    assert {output for node in graph.node for output in node.output} > {"y", "layers.3/moe_ffn/experts/h"}


def collective_model(op: str, ranks: int, shape: tuple = ("batch", "tokens", 8)) -> onnx.ModelProto:
    attributes = {"ranks": ranks} | ({"axis": -1} if op == "AllGather" else {})
    node = helper.make_node(op, ["x"], ["y"], name=f"/head/{op}", domain=DOMAIN, **attributes)
    inner = helper.make_node("Identity", ["x_in"], ["x"], name="/head/Identity")
    out = (*shape[:-1], shape[-1] * ranks) if op == "AllGather" else shape
    graph = helper.make_graph(
        [inner, node],
        "g",
        [helper.make_tensor_value_info("x_in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    return backends.make_model(graph)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("op", ["AllReduce", "AllGather"])
def test_collectives_become_dist_collective_and_tensorrt_rtx_takes_it(op: str, ranks: int) -> None:
    lowered, (record,) = lower(collective_model(op, ranks), TENSORRT)
    assert record.chosen == "dist_collective"
    assert record.refused == {"identity": f"{ranks} ranks take part"}
    network, faults = backends.parse(lowered)
    assert not faults
    assert tuple(network.get_output(0).shape) == (-1, -1, 8 * ranks if op == "AllGather" else 8)


def test_a_gather_goes_to_the_front_and_back() -> None:
    """The transposes alone, with a stand-in for the collective: the parts lie side by side on the last axis."""
    lowered, _ = lower(collective_model("AllGather", 2, (2, 3, 8)), TENSORRT)
    for node in lowered.graph.node:
        if node.op_type == "DistCollective":
            node.CopyFrom(helper.make_node("Concat", [node.input[0]] * 2, node.output, axis=0))
    x = random(0, 2, 3, 8)
    np.testing.assert_array_equal(backends.run_onnxruntime(lowered, {"x_in": x})[0], np.concatenate([x, x], axis=-1))


def test_collectives_among_several_ranks_are_never_inlined() -> None:
    with pytest.raises(BuildError, match=r"ort cannot run AllReduce \(/head/AllReduce\).*no trt.DistCollective"):
        lower(collective_model("AllReduce", 2), ORT)


def test_lowering_leaves_the_portable_model_as_it_is() -> None:
    model = backends.case_model(sliced(Mixture(3), 0, 8))
    before = model.SerializeToString(deterministic=True)
    lower(model, ORT)
    assert model.SerializeToString(deterministic=True) == before


def routed(case: OpCase, tied: bool = False, **changes) -> onnx.ModelProto:
    """``case``, of 8 experts, with its choice made by a ``Route`` before it: 8 of 4 groups, 2 kept."""
    model = backends.case_model(case)
    x, chosen, _, *weights = case.inputs()
    attributes = {"top_k": 3, "groups": 4, "top_groups": 2, "scoring": "sigmoid", "group_score": "top2", "normalize": 1, "scale": 2.5} | changes
    logits = np.zeros((len(x), 8), np.float32) if tied else random(11, len(x), 8)
    route = helper.make_node("Route", ["logits", "bias"], ["experts", "weights"], name="/route", domain=DOMAIN, **attributes)
    graph = model.graph
    kept = [value for value in graph.input if value.name == "x"]
    del graph.input[:]
    graph.input.extend([*kept, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("tokens", 8))])
    graph.initializer.append(backends.tensor("bias", np.zeros(8, np.float32) if tied else random(12, 8, scale=0.1)))
    nodes = [route, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    made = backends.make_model(graph)
    made.metadata_props.add(key="logits", value=logits.tobytes().hex())
    return made


ROUTER = replace(ORT, kernels=ORT.kernels | {"com.microsoft.MoEGroupRouter"})
ROUTED = [
    *(sliced(Mixture(tokens), first, count) for tokens, first, count in ((0, 0, 8), (1, 0, 8), (17, 0, 8), (17, 4, 4), (5, 6, 2))),
    *(quantized(Mixture(tokens), first, count, "float") for tokens, first, count in ((1, 0, 8), (17, 0, 8), (17, 2, 4))),
]


@pytest.mark.parametrize("changes", [{}, {"normalize": 0, "scale": 1.0}, {"groups": 1, "top_groups": 1}, {"tied": True}], ids=str)
@pytest.mark.parametrize("case", ROUTED, ids=lambda case: case.name)
def test_router_kernel_and_experts_equal_the_functions(case: OpCase, changes: dict) -> None:
    model = routed(case, **changes)
    feeds = backends.feeds_of(case) | {"logits": np.frombuffer(bytes.fromhex(model.metadata_props[0].value), np.float32).reshape(-1, 8)}
    lowered, records = with_derived(model, ROUTER)
    assert [record.chosen for record in records][0] == "router_ort"
    assert "TopK" not in {node.op_type for node in lowered.graph.node}
    one, other = (backends.run_onnxruntime(it, feeds)[0] for it in (lowered, model))
    np.testing.assert_allclose(one, other, *reversed(_pair(LOG_ROUTING)))
