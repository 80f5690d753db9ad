"""Quantised experts: what int8 costs, and that ONNX Runtime and TensorRT-RTX multiply in int8."""

from collections import Counter
from pathlib import Path

import backends
import numpy as np
import onnx
import pytest
from suites.ops import QUANTIZED_CASES, Mixture, OpCase, blocked, quantized, sliced

from engines.backends.int8_layers import epilogues, int8_gemms, parse_layers
from exporter.errors import ExportError
from exporter.lowering import lower
from exporter.ops import DOMAIN, OPS, body_of
from exporter.plan.capabilities import Capabilities

NOTHING = Capabilities("bare", frozenset(), frozenset({"fp32"}), False, False, "none")
PRODUCTS_IN_INT8 = {"static": 2, "token": 2, "float": 0}
ways = pytest.mark.parametrize("activations", PRODUCTS_IN_INT8)


def reference(case: OpCase) -> np.ndarray:
    return OPS[case.op].reference(*case.inputs(), **case.attributes)


@pytest.mark.parametrize("case", QUANTIZED_CASES, ids=lambda case: case.name)
def test_the_shape_rule_foretells_the_shape(case: OpCase) -> None:
    y = reference(case)
    assert OPS[case.op].shapes(*(array.shape for array in case.inputs()), **case.attributes) == (y.shape,)
    assert y.dtype == case.inputs()[0].dtype


def with_ranges_of_the_data(case: OpCase) -> list[np.ndarray]:
    """The case's inputs, static scales such that nothing saturates."""
    x, chosen, weights, gate_up, gate_up_scale, *rest = case.inputs()
    both = x @ (gate_up * gate_up_scale)
    h = both[:, :, 0::2] / (1 + np.exp(-both[:, :, 0::2])) * both[:, :, 1::2]
    static = [np.abs(x).max() / 127, np.abs(h).max(axis=(1, 2), keepdims=True) / 127]
    return [x, chosen, weights, gate_up, gate_up_scale, *rest[:2], *(static if case.attributes["activations"] == "static" else [])]


@pytest.mark.parametrize(("activations", "most"), [("float", 0.01), ("token", 0.02), ("static", 0.05)])
def test_quantised_experts_are_near_the_float_ones(activations: str, most: float) -> None:
    """A step is a 127th of a range; a static range is wider than most tokens'."""
    mixture = Mixture(17, hidden=64, width=48)
    case, wanted = quantized(mixture, 0, 8, activations), reference(sliced(mixture, 0, 8))
    got = OPS[case.op].reference(*with_ranges_of_the_data(case), **case.attributes)
    assert np.linalg.norm(got - wanted) <= most * np.linalg.norm(wanted)


def test_ties_go_to_even_and_what_is_too_large_saturates() -> None:
    """One expert whose weights copy the token: what comes out is what int8 made of it."""
    x = np.array([[0.5, 1.5, 2.5, 200, -200, 1]], np.float32)
    one = np.array([[1.0]], np.float32)
    gate_up = np.zeros((1, 6, 12), np.int8)
    gate_up[0, 5, 0::2] = 1  # gates are silu(100), which is 100
    gate_up[0, np.arange(6), np.arange(1, 12, 2)] = 1
    gate_up_scale = np.where(np.arange(12) % 2, 1, 100).astype(np.float32).reshape(1, 1, 12)
    down, down_scale = np.eye(6, dtype=np.int8)[None], np.full((1, 1, 6), 0.01, np.float32)
    operands = (x, np.array([[0]]), one, gate_up, gate_up_scale, down, down_scale, np.float32(1), np.full((1, 1, 1), 100, np.float32))
    y = OPS["QuantizedExperts"].reference(*operands, first_expert=0, activations="static")
    np.testing.assert_allclose(y, [[0, 2, 2, 127, -128, 1]], rtol=1e-6)


@ways
def test_tokens_of_zeros_give_zeros(activations: str) -> None:
    case = quantized(Mixture(3), 0, 8, activations)
    feeds = backends.feeds_of(case)
    feeds["x"] = np.zeros_like(feeds["x"])
    assert np.array_equal(backends.run_onnxruntime(backends.case_model(case), feeds)[0], feeds["x"])


@ways
@pytest.mark.parametrize("ranks", [2, 4])
def test_quantised_experts_of_all_ranks_sum_to_the_whole(activations: str, ranks: int) -> None:
    case, count = quantized(Mixture(17), 0, 8, activations), 8 // ranks
    whole = case.inputs()

    def part(first: int) -> np.ndarray:
        operands = [array[first : first + count] if array.ndim == 3 else array for array in whole]
        return OPS[case.op].reference(*operands, **case.attributes | {"first_expert": first})

    np.testing.assert_allclose(sum(part(rank * count) for rank in range(ranks)), reference(case), rtol=1e-5, atol=1e-5)


def test_an_unknown_way_to_quantise_is_refused_with_the_known_ones() -> None:
    node = onnx.helper.make_node("QuantizedExperts", list("abcdefg"), ["y"], domain=DOMAIN, first_expert=0, activations="row")
    with pytest.raises(ExportError, match="'row'.*static, token, float"):
        body_of(node)


@ways
def test_onnxruntime_multiplies_in_int8(activations: str, tmp_path: Path) -> None:
    model = lower(backends.case_model(quantized(Mixture(17), 0, 8, activations)), NOTHING)[0]
    count = Counter(node.op_type for node in backends.optimized_by_onnxruntime(model, tmp_path))
    assert count["MatMulIntegerToFloat"] == PRODUCTS_IN_INT8[activations]
    assert count["MatMul"] == 2 - PRODUCTS_IN_INT8[activations]
    assert count["Cast"] == 0, "what depends on weights alone is folded"


@ways
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensorrt_rtx_multiplies_in_int8_with_scales_by_expert_and_channel(activations: str, dtype: str) -> None:
    case = quantized(Mixture(16, hidden=256, width=96, dtype=dtype), 2, 4, activations)
    dump = backends.layers_of(lower(backends.case_model(case), NOTHING)[0], (1, 16, 32))
    assert int8_gemms(dump) == PRODUCTS_IN_INT8[activations]
    assert all(scale in dims for scale, dims in zip([(4, 1, 192), (4, 1, 256)], epilogues(dump), strict=False))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_rtx_reads_all_blocks_scales_beside_int4_weights(dtype: str) -> None:
    """With int8 activations it would use the first block's for all; here each layer has the whole grid."""
    case = blocked(Mixture(16, hidden=256, width=96, dtype=dtype), 2, 4, 32)
    layers = list(parse_layers(backends.layers_of(lower(backends.case_model(case), NOTHING)[0], (1, 16, 32))))
    for weight, grid in (((4, 256, 192), (4, 8, 192)), ((4, 96, 256), (4, 3, 256))):
        readers = [layer for layer in layers if (weight, "Int4") in [(constant.dims, constant.dtype) for constant in layer.constants]]
        assert readers
        assert all(grid in [constant.dims for constant in layer.constants] for layer in readers)


def test_blocks_do_not_go_with_int8_activations() -> None:
    node = onnx.helper.make_node("QuantizedExperts", list("abcdefg"), ["y"], domain=DOMAIN, first_expert=0, activations="token", block_size=32)
    with pytest.raises(ExportError, match="a scale for 32 inputs go with float activations, not 'token'"):
        body_of(node)


DUMP = """Layers:
Name: __mye1493_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: /op/MatMul_myl0_2, LayerType: gemm, Inputs: [ { Name: __mye4256_q8_myl0, Dimensions: [1,-1,256], Strides: [-1,256,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: gate_up_constantInt8_myl0, Dimensions: [8,256,256], Strides: [65536,256,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: __mye4294_myl0, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_10_myl0, Dimensions: [8,-1,256], Strides: [-1,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: /op/MatMul]
Name: __myl_MulSlic_myl0_3, LayerType: kgen, Inputs: [ { Name: __myln_k_arg__bb1_10_myl0, Dimensions: [8,-1,256], Strides: [-1,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye4201_dconst_myl0, Dimensions: [8,1,256], Strides: [256,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ { Name: op/out_nominal.1_11_myl0, Dimensions: [8,-1,128], Strides: [-1,128,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }], TacticName: __myl_MulSlic_0x5e078e86, StreamId: 0, Metadata: [ONNX Layer: /op/Mul]
Name: __myl_CastMulFc_myl0_1, LayerType: runtime_fusion, Inputs: [ { Name: x, Dimensions: [1,-1,256], Strides: [-1,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: gate_up_constantInt8_myl0, Dimensions: [8,256,256], Strides: [65536,256,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_9_myl0, Dimensions: [8,-1,256], Strides: [-1,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myl_CastMulFc_0x1, StreamId: 0, Metadata: [ONNX Layer: /op/MatMul]
"""  # noqa: E501
"""From TensorRT-RTX 1.7.1, two of its builds shortened."""


def test_int8_products_are_counted_in_the_compilers_list() -> None:
    assert int8_gemms(DUMP) == 1
    assert epilogues(DUMP) == [{(8, 1, 256)}]
