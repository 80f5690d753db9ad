"""Kernels that round in their own way: near what they stand for, taken only where that was asked for, and said so."""

import backends
import numpy as np
import onnx
import pytest
from lowered import with_derived
from onnx import TensorProto, helper
from suites.ops import Mixture, OpCase, blocked, quantized, random, to_blocks
from tolerances import FAST_BLOCKS, FLOAT32_ORDER

from engines.backends.ort import CPU, CUDA
from exporter.lowering import lower


def linear_model(bits: int, block: int, inputs: int = 256, outputs: int = 96, activations: str = "float") -> onnx.ModelProto:
    """``x`` times a matrix in few bits: a scale for each block of inputs, or for all of them where ``block`` is 0."""
    weight, scale = to_blocks(random(1, inputs, outputs, scale=inputs**-0.5), np.float32, block or inputs, bits)
    initializers = [backends.tensor("w", weight), backends.tensor("w.scale", scale if block else scale[0])]
    nodes, x = [], "x"
    if activations != "float":
        initializers += [backends.tensor("s", np.float32(3 / 127)), backends.tensor("zero", np.int8(0))]
        nodes = [helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["r"])]
        x = "r"
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w.scale"], ["wide"], name="/l/DequantizeLinear", **({"axis": 0, "block_size": block} if block else {"axis": 1})))
    nodes.append(helper.make_node("MatMul", [x, "wide"], ["y"], name="/l/MatMul"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, "tokens", size)) for name, size in (("x", inputs), ("y", outputs))]
    return backends.make_model(helper.make_graph(nodes, "linear", ends[:1], ends[1:], initializers))


def distance(model: onnx.ModelProto, lowered: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Relative L2 distance of the lowered model's output."""
    got, wanted = (np.float64(backends.run_onnxruntime(it, feeds, as_written=True)[0]) for it in (lowered, model))
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30))


@pytest.mark.parametrize("tokens", [1, 7, 33])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_4_bit_matrices_are_multiplied_in_float32(block: int, tokens: int) -> None:
    model = linear_model(4, block)
    lowered, (record,) = with_derived(model, CPU)
    assert (record.op, record.chosen, record.node) == ("QuantizedLinear", "nbits_ort", "/l/MatMul")
    assert [node.op_type for node in lowered.graph.node] == ["MatMulNBits"]
    assert {tensor.name for tensor in lowered.graph.initializer} == {"w.rows", "w.scale.rows"}
    assert distance(model, lowered, {"x": random(2, 1, tokens, 256)}) < FLOAT32_ORDER.relative


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize(("bits", "block", "inputs"), [(8, 0, 256), (8, 0, 96), (8, 32, 256), (8, 128, 256), (4, 32, 256), (4, 128, 256)])
def test_fast_products_round_activations_by_blocks(bits: int, block: int, inputs: int, tokens: int) -> None:
    model = linear_model(bits, block, inputs)
    lowered, (record,) = with_derived(model, CPU, fast=True)
    assert record.chosen == "nbits_ort"
    assert 0 < distance(model, lowered, {"x": random(2, 1, tokens, inputs)}) < FAST_BLOCKS.relative


@pytest.mark.parametrize(
    ("model", "fast", "why"),
    [
        (linear_model(8, 0), False, "rounds activations of 8-bit weights; build --fast allows that"),
        (linear_model(8, 0, activations="static"), True, "rounded already"),
        (linear_model(8, 0, inputs=48), True, "48 inputs are no multiple of a block"),
        (linear_model(4, 16), True, "256 inputs are no multiple of a block"),
    ],
    ids=["exact", "static", "odd", "small blocks"],
)
def test_a_product_stays_as_written_with_a_reason(model: onnx.ModelProto, fast: bool, why: str) -> None:
    lowered, (record,) = lower(model, CPU, {}, fast)
    assert record.chosen == "as_written"
    assert why in record.refused["nbits_ort"]
    assert [node.op_type for node in lowered.graph.node] == [node.op_type for node in model.graph.node]


def test_on_cuda_8_bit_matrices_need_no_leave() -> None:
    """Its kernel takes activations as they are, in float16."""
    model = linear_model(8, 128)
    assert lower(model, CUDA, {})[1][0].refused["nbits_ort"] == "the kernel does not compute in fp32"
    for tensor in model.graph.initializer:
        if tensor.name == "w.scale":
            tensor.CopyFrom(backends.tensor("w.scale", onnx.numpy_helper.to_array(tensor).astype(np.float16)))
    assert lower(model, CUDA, {})[1][0].chosen == "nbits_ort"


WIDE = [Mixture(tokens, hidden=256, width=128) for tokens in (1, 17)]
FAST_EXPERTS = [
    *(quantized(mixture, first, 4, "float") for mixture in WIDE for first in (0, 4)),
    *(blocked(mixture, 2, 4, block, bits) for mixture in WIDE for block, bits in ((128, 8), (32, 8), (128, 4), (32, 4))),
    *(quantized(mixture, 2, 4, "token") for mixture in WIDE),
]


@pytest.mark.parametrize("case", FAST_EXPERTS, ids=lambda case: case.name)
def test_fast_experts_are_near_every_scheme(case: OpCase) -> None:
    model = backends.case_model(case)
    lowered, (record,) = with_derived(model, CPU, fast=True)
    assert record.chosen == "qmoe_ort"
    assert 0 < distance(model, lowered, backends.feeds_of(case)) < FAST_BLOCKS.relative


@pytest.mark.parametrize("mixture", WIDE, ids=str)
def test_fast_experts_do_not_saturate_as_static_scales_do(mixture: Mixture) -> None:
    """They are near what the weights give with float activations: the scheme's own ranges are left out."""
    static, floating = (quantized(mixture, 2, 4, activations) for activations in ("static", "float"))
    lowered, (record,) = with_derived(backends.case_model(static), CPU, fast=True)
    assert record.chosen == "qmoe_ort"
    assert 0 < distance(backends.case_model(floating), lowered, backends.feeds_of(static)) < FAST_BLOCKS.relative


def test_fast_experts_give_exact_zeros_to_tokens_of_other_ranks() -> None:
    case = quantized(Mixture(5, hidden=256, width=128), 4, 4, "float", 3)
    assert not backends.run_onnxruntime(with_derived(backends.case_model(case), CPU, fast=True)[0], backends.feeds_of(case))[0].any()


def test_blocks_of_8_bit_experts_are_taken_with_leave_alone() -> None:
    case = blocked(Mixture(3, hidden=256, width=128), 0, 8, 128, bits=8)
    _, (record,) = lower(backends.case_model(case), CPU, {})
    assert record.chosen == "inline"
    assert "8-bit weights with a scale for 128 inputs" in record.refused["qmoe_ort"]
