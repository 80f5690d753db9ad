"""Unsigned activations: the same numbers, and weights left alone."""

from collections import Counter
from pathlib import Path

import backends
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from suites.ops import QUANTIZED_CASES, Mixture, OpCase, quantized, random
from tolerances import UNSIGNED

from exporter.lowering import lower
from exporter.lowering.unsigned import unsigned_activations
from exporter.plan.capabilities import Capabilities

NOTHING = Capabilities("bare", frozenset(), frozenset({"fp32"}), False, False, "none")
runnable = [case for case in QUANTIZED_CASES if "bfloat16" not in case.name]


def both_forms(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    unsigned_activations(changed)
    onnx.checker.check_model(changed, full_check=True)
    return model, changed


def zero_points(model: onnx.ModelProto, op_type: str) -> list[str]:
    return [node.input[2] for node in model.graph.node if node.op_type == op_type]


@pytest.mark.parametrize("case", runnable, ids=lambda case: case.name)
def test_unsigned_activations_give_the_same_numbers(case: OpCase) -> None:
    signed, unsigned = both_forms(lower(backends.case_model(case), NOTHING)[0])
    one, other = (backends.run_onnxruntime(model, backends.feeds_of(case))[0] for model in (unsigned, signed))
    np.testing.assert_allclose(np.float64(one), np.float64(other), UNSIGNED.relative, UNSIGNED.absolute)


@pytest.mark.parametrize("activations", ["static", "token"])
def test_activations_are_unsigned_and_weights_are_not(activations: str, tmp_path: Path) -> None:
    _, unsigned = both_forms(lower(backends.case_model(quantized(Mixture(17), 0, 8, activations)), NOTHING)[0])
    assert zero_points(unsigned, "QuantizeLinear") == ["op/zero_point.unsigned"] * 2
    assert Counter(zero_points(unsigned, "DequantizeLinear")) == {"op/zero_point": 2, "op/zero_point.unsigned": 2}
    assert Counter(node.op_type for node in backends.optimized_by_onnxruntime(unsigned, tmp_path))["MatMulIntegerToFloat"] == 2


def linear(zero: int = 0, shown: bool = False) -> onnx.ModelProto:
    """A linear whose zero point is one initializer, shared by the activation and the weight.

    :param shown: the int8 values are an output too.
    """
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("tokens", 8))]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_rounded"]),
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w_wide"]),
            helper.make_node("MatMul", ["x_rounded", "w_wide"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("tokens", 16))],
        outputs + [helper.make_tensor_value_info("q", TensorProto.INT8, ("tokens", 16))] * shown,
        [
            backends.tensor("scale", np.array(1 / 32, np.float32)),
            backends.tensor("zero", np.array(zero, np.int8)),
            backends.tensor("w", np.clip(random(1, 16, 8, scale=40), -128, 127).astype(np.int8)),
        ],
        value_info=[] if shown else [helper.make_tensor_value_info("q", TensorProto.INT8, ("tokens", 16))],
    )
    return backends.make_model(graph)


def test_a_zero_point_that_is_shared_with_a_weight_stays_the_weights() -> None:
    signed, unsigned = both_forms(linear())
    assert zero_points(unsigned, "QuantizeLinear") == ["zero.unsigned"]
    assert zero_points(unsigned, "DequantizeLinear") == ["zero.unsigned", "zero"]
    x = random(0, 5, 16, scale=3)
    np.testing.assert_array_equal(*(backends.run_onnxruntime(model, {"x": x})[0] for model in (signed, unsigned)))


@pytest.mark.parametrize("changes", [{"zero": 3}, {"shown": True}], ids=["another zero point", "an output"])
def test_what_cannot_be_unsigned_is_left_as_it_is(changes: dict) -> None:
    signed, unsigned = both_forms(linear(**changes))
    assert signed == unsigned


def test_unsigned_twice_is_unsigned_once() -> None:
    _, once = both_forms(linear())
    assert both_forms(once)[1] == once
