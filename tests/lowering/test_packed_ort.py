"""Our ops for ONNX Runtime on a CPU: each against what it stands for, on every kind of processor to the same bits."""

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import backends
import numpy as np
import onnx
import pytest
from lowered import with_derived
from lowering.test_fast import linear_model
from onnx import TensorProto, helper
from suites.ops import (
    QUANTIZED_CASES,
    ROUTE_CASES,
    Mixture,
    OpCase,
    blocked,
    quantized,
    random,
    sliced,
    to_blocks,
)
from tolerances import FAST_DIGITS, FLOAT32_ORDER, INT8_FLIPS, LOG_ROUTING

from engines.backends.ort import CPU
from engines.backends.plugins import with_ops
from exporter.lowering import lower
from exporter.ops import DOMAIN, OPS, OPSET, VERSION

ABLE = with_ops(CPU)


def apart(model: onnx.ModelProto, lowered: onnx.ModelProto, feeds: dict[str, np.ndarray], library: Path) -> float:
    """Relative L2 distance of the lowered model's output."""
    got, wanted = backends.run_onnxruntime(lowered, feeds, library=library)[0], backends.run_onnxruntime(model, feeds, as_written=True)[0]
    assert got.shape == wanted.shape
    return float(np.linalg.norm(np.float64(got) - wanted) / max(np.linalg.norm(np.float64(wanted)), 1e-30))


LINEARS = [(8, 0, 256, 96), (8, 0, 96, 33), (8, 0, 50, 7), (8, 32, 256, 96), (8, 128, 256, 40), (4, 32, 160, 16), (4, 128, 256, 34)]
"""Bits, block, inputs, outputs."""


@pytest.mark.parametrize("tokens", [0, 1, 7, 33, 600])
@pytest.mark.parametrize(("bits", "block", "inputs", "outputs"), LINEARS)
def test_products_are_as_exact_as_float32(bits: int, block: int, inputs: int, outputs: int, tokens: int, ops_library: Path) -> None:
    model = linear_model(bits, block, inputs, outputs)
    lowered, (record,) = with_derived(model, ABLE)
    assert (record.op, record.chosen) == ("QuantizedLinear", "packed_linear_ort")
    assert [node.op_type for node in lowered.graph.node] == ["PackedLinear"]
    assert {tensor.name for tensor in lowered.graph.initializer} == {"w.panels", "w.scale.panels"}
    assert apart(model, lowered, {"x": random(2, 1, tokens, inputs)}, ops_library) < FLOAT32_ORDER.relative


@pytest.mark.parametrize(("bits", "block", "inputs", "outputs"), LINEARS)
def test_with_leave_activations_have_two_digits(bits: int, block: int, inputs: int, outputs: int, ops_library: Path) -> None:
    model = linear_model(bits, block, inputs, outputs)
    lowered, _ = with_derived(model, ABLE, fast=True)
    assert FLOAT32_ORDER.relative < apart(model, lowered, {"x": random(2, 1, 9, inputs)}, ops_library) < FAST_DIGITS.relative


def in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Its float32 tensors cut to what bfloat16 holds."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim:
            tensor.CopyFrom(backends.tensor(tensor.name, (array.view(np.uint32) & 0xFFFF0000).view(np.float32)))
    return model


def float_linear(inputs: int, outputs: int) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, "tokens", size)) for name, size in (("x", inputs), ("y", outputs))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/layers.0/q/MatMul")
    return backends.make_model(helper.make_graph([node], "linear", ends[:1], ends[1:], [backends.tensor("w", random(1, inputs, outputs, scale=inputs**-0.5))]))


def float_feed_forward(hidden: int = 64, width: int = 48) -> onnx.ModelProto:
    """``feed_forward`` with stored matrices of float32."""
    model = feed_forward(hidden, width)
    kept = [node for node in model.graph.node if node.op_type != "DequantizeLinear"]
    for node in kept:
        node.input[:] = [name.removesuffix(".wide") for name in node.input]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    sizes = {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
    model.graph.initializer.extend(backends.tensor(name, random(seed, *shape, scale=shape[0] ** -0.5)) for seed, (name, shape) in enumerate(sizes.items()))
    return model


Run = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def of_experts(tokens: int) -> Run:
    case = sliced(Mixture(tokens), 2, 4)
    return backends.case_model(case), backends.feeds_of(case)


FLOATS: dict[str, tuple[Callable[[int], Run], str]] = {
    "linear": (lambda tokens: (float_linear(256, 96), {"x": random(2, 1, tokens, 256)}), "packed_linear_ort"),
    "odd linear": (lambda tokens: (float_linear(101, 37), {"x": random(2, 1, tokens, 101)}), "packed_linear_ort"),
    "feed-forward": (lambda tokens: (float_feed_forward(64, 48), {"x": random(2, 1, tokens, 64)}), "packed_feed_forward_ort"),
    "experts": (of_experts, "packed_experts_ort"),
}
"""Float models with what they are given, and what becomes of their last product."""


def blocked_experts() -> Run:
    case = blocked(Mixture(9, hidden=64, width=64), 2, 4, 32, 4)
    return backends.case_model(case), backends.feeds_of(case)


IN_BLOCKS: dict[str, Callable[[], Run]] = {
    "linear": lambda: (linear_model(4, 32, 160, 40), {"x": random(2, 1, 9, 160)}),
    "feed-forward": lambda: (feed_forward(64, 64, 32, 4), {"x": random(2, 1, 9, 64)}),
    "experts": blocked_experts,
}


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_scales_that_are_bfloat16_are_kept_so(name: str, ops_library: Path) -> None:
    model, feeds = IN_BLOCKS[name]()
    model = in_bfloat16(model)
    wide, short = (with_derived(model, ABLE, is_bfloat16=lambda name, known=known: known and name.endswith("scale"))[0] for known in (False, True))
    kept = {tensor.data_type for tensor in short.graph.initializer if "scale" in tensor.name}
    assert kept == {TensorProto.BFLOAT16}
    got, wanted = (backends.run_onnxruntime(one, feeds, library=ops_library)[0] for one in (short, wide))
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("tokens", [0, 1, 7, 33, 600])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_multiplied_as_they_are(name: str, bits: int, tokens: int, ops_library: Path) -> None:
    make, chosen = FLOATS[name]
    model, feeds = make(tokens)
    model = in_bfloat16(model) if bits == 16 else model
    lowered, records = with_derived(model, ABLE, is_bfloat16=lambda _: bits == 16)
    assert records[-1].chosen == chosen
    (node,) = lowered.graph.node
    assert next(one.i for one in node.attribute if one.name == "bits") == bits
    assert apart(model, lowered, feeds, ops_library) < LOG_ROUTING.relative


@pytest.mark.parametrize("tokens", [1, 33])
def test_static_activations_are_rounded_as_calibrated(tokens: int, ops_library: Path) -> None:
    model = linear_model(8, 0, activations="static")
    lowered, (record,) = with_derived(model, ABLE)
    assert record.chosen == "packed_linear_ort"
    assert [node.op_type for node in lowered.graph.node] == ["PackedLinear"]
    assert apart(model, lowered, {"x": random(2, 1, tokens, 256, scale=2)}, ops_library) < FLOAT32_ORDER.relative


def feed_forward(hidden: int = 64, width: int = 48, block: int = 0, bits: int = 8) -> onnx.ModelProto:
    """silu(x · gate) * (x · up) · down, of dequantised matrices."""
    nodes, initializers = [], []
    for seed, (name, inputs, outputs) in enumerate((("gate", hidden, width), ("up", hidden, width), ("down", width, hidden))):
        weight, scale = to_blocks(random(seed, inputs, outputs, scale=inputs**-0.5), np.float32, block or inputs, bits)
        initializers += [backends.tensor(name, weight), backends.tensor(f"{name}.scale", scale if block else scale[0])]
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [f"{name}.wide"], **({"axis": 0, "block_size": block} if block else {"axis": 1})))
    for op, inputs, output in (("MatMul", ["x", "gate.wide"], "g"), ("Sigmoid", ["g"], "s"), ("Mul", ["g", "s"], "a"), ("MatMul", ["x", "up.wide"], "u"), ("Mul", ["a", "u"], "h"), ("MatMul", ["h", "down.wide"], "y")):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/f/{output}/{op}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, "tokens", hidden)) for name in ("x", "y")]
    return backends.make_model(helper.make_graph(nodes, "feed-forward", ends[:1], ends[1:], initializers))


@pytest.mark.parametrize("tokens", [0, 1, 33])
@pytest.mark.parametrize(("hidden", "width", "block", "bits"), [(64, 48, 0, 8), (64, 32, 32, 8), (128, 64, 64, 4)])
def test_three_products_become_one_feed_forward(hidden: int, width: int, block: int, bits: int, tokens: int, ops_library: Path) -> None:
    model = feed_forward(hidden, width, block, bits)
    lowered, records = with_derived(model, ABLE)
    assert [record.chosen for record in records] == ["packed_linear_ort", "packed_linear_ort", "packed_feed_forward_ort"]
    assert [node.op_type for node in lowered.graph.node] == ["PackedFeedForward"]
    assert apart(model, lowered, {"x": random(2, 1, tokens, hidden)}, ops_library) < LOG_ROUTING.relative


EXPERTS = [case for case in QUANTIZED_CASES if "float32" in case.name and "by 16" not in case.name]
EXPERTS += [blocked(Mixture(tokens, hidden=64, width=64), 2, 4, block, bits) for tokens, block, bits in ((1, 32, 8), (50, 64, 8), (50, 32, 4))]
EXPERTS += [quantized(Mixture(600, hidden=32, width=16), 2, 4, activations) for activations in ("static", "token", "float")]


@pytest.mark.parametrize("case", EXPERTS, ids=lambda case: case.name)
def test_experts_equal_the_function(case: OpCase, ops_library: Path) -> None:
    model = backends.case_model(case)
    lowered, (record,) = with_derived(model, ABLE)
    assert record.chosen == "packed_experts_ort"
    assert [node.op_type for node in lowered.graph.node] == ["PackedExperts"]
    tolerance = LOG_ROUTING if case.attributes["activations"] == "float" else INT8_FLIPS
    assert apart(model, lowered, backends.feeds_of(case), ops_library) < tolerance.relative


def test_experts_give_exact_zeros_to_tokens_of_other_ranks(ops_library: Path) -> None:
    case = quantized(Mixture(5), 4, 4, "token", all_on=3)
    lowered, _ = with_derived(backends.case_model(case), ABLE)
    assert not backends.run_onnxruntime(lowered, backends.feeds_of(case), library=ops_library)[0].any()


@pytest.mark.parametrize("case", ROUTE_CASES, ids=lambda case: case.name)
def test_routes_equal_the_reference(case: OpCase, ops_library: Path) -> None:
    model = backends.case_model(case)
    del model.functions[:]
    got = backends.run_onnxruntime(model, backends.feeds_of(case), library=ops_library)
    for one, other in zip(got, OPS["Route"].reference(*case.inputs(), **case.attributes), strict=True):
        np.testing.assert_allclose(one, other, FLOAT32_ORDER.relative, FLOAT32_ORDER.absolute)


def routed(activations: str = "float", width: int = 48) -> onnx.ModelProto:
    """A route and the experts that it chooses."""
    mixture = backends.case_model(quantized(Mixture(3, width=width), 0, 8, activations))
    route = helper.make_node("Route", ["logits"], ["experts", "weights"], name="/route", domain=DOMAIN, top_k=3, groups=1, top_groups=1, scoring="softmax", group_score="max", normalize=0, scale=1.0)
    inputs = [value for value in mixture.graph.input if value.name == "x"] + [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("tokens", 8))]
    graph = helper.make_graph([route, *mixture.graph.node], "routed", inputs, mixture.graph.output, mixture.graph.initializer)
    return backends.make_model(graph)


def test_a_route_is_kept_where_experts_of_ours_read_it(ops_library: Path) -> None:
    model = routed()
    lowered, records = with_derived(model, ABLE)
    assert [(record.op, record.chosen) for record in records] == [("Route", "packed_route_ort"), ("QuantizedExperts", "packed_experts_ort")]
    assert apart(model, lowered, {"x": random(1, 9, 32), "logits": random(2, 9, 8)}, ops_library) < LOG_ROUTING.relative


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (linear_model(4, 16), "the kernel takes blocks of a multiple of 32 that divide the inputs, not 16 of 256"),
        (routed(width=40), "multiples of 16, not the hidden size 32 and the width 40"),
    ],
    ids=["small blocks", "odd width"],
)
def test_what_the_kernels_do_not_take_has_a_reason(model: onnx.ModelProto, why: str) -> None:
    _, records = lower(model, ABLE, {})
    assert any(why in reason for reason in records[-1].refused.values())
    assert all("packed" not in record.chosen for record in records)


def test_without_the_library_nothing_is_packed() -> None:
    _, (record,) = lower(linear_model(8, 128), CPU, {}, True)
    assert record.chosen == "nbits_ort"
    assert record.refused["packed_linear_ort"] == "ort has no moetrt.cpu.PackedLinear (our kernels for CPUs: build --plugins)"


def models() -> list[Run]:
    """One of each sort, with enough rows for tiles and too few."""
    linears = [(linear_model(*sizes), {"x": random(2, 1, tokens, sizes[2])}) for sizes in LINEARS for tokens in (1, 40)]
    experts = [quantized(Mixture(tokens), 2, 4, activations) for tokens in (1, 40) for activations in ("static", "token", "float")]
    floats = [make(tokens) for make, _ in FLOATS.values() for tokens in (1, 40)]
    return linears + floats + [(backends.case_model(case), backends.feeds_of(case)) for case in experts]


def digest(library: Path, threads: int) -> str:
    made = hashlib.sha256()
    for model, feeds in models():
        for halves in (False, True):
            lowered, _ = with_derived(in_bfloat16(model) if halves else model, ABLE, is_bfloat16=lambda _, halves=halves: halves)
            made.update(backends.run_onnxruntime(lowered, feeds, library=library, threads=threads)[0].tobytes())
    return made.hexdigest()


def test_threads_do_not_change_a_bit(ops_library: Path) -> None:
    assert digest(ops_library, 1) == digest(ops_library, 2)


@pytest.mark.parametrize("kind", ["plain", "avx2", "vnni", "amx"])
def test_kinds_of_processors_agree_to_the_bit(kind: str, ops_library: Path) -> None:
    told = ctypes.CDLL(str(ops_library)).moetrt_ops_kinds
    told.restype = ctypes.c_char_p
    if kind not in told().decode().split():
        pytest.skip(f"this processor has no {kind}")
    program = f"from pathlib import Path; from lowering.test_packed_ort import digest; print(digest(Path({str(ops_library)!r}), 1))"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    seen = subprocess.run([sys.executable, "-c", program], env={**os.environ, "MOETRT_ISA": kind, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == digest(ops_library, 1)


@pytest.mark.parametrize("attribute", ["K", "N", "block", "bits"])
def test_a_matrix_of_another_size_is_refused_not_read(attribute: str, ops_library: Path) -> None:
    lowered, _ = with_derived(linear_model(8, 32), ABLE)
    (node,) = lowered.graph.node
    given = next(one for one in node.attribute if one.name == attribute)
    given.i = {"K": 512, "N": 1 << 40, "block": 48, "bits": 5}[attribute]
    with pytest.raises(Exception, match=r"expected|multiple|divide|rows|N is 1099511627776|bits"):
        backends.run_onnxruntime(lowered, {"x": random(2, 1, 3, 256)}, library=ops_library)


def test_ops_are_declared_as_the_graphs_name_them() -> None:
    lowered, _ = with_derived(linear_model(8, 0), ABLE)
    assert {(entry.domain, entry.version) for entry in lowered.opset_import} == {("", OPSET), (DOMAIN, VERSION)}
