"""What the graphs give the plugins, given to the kernels: the op's own numbers come out."""

import backends
import numpy as np
import onnx
import pytest
from lowered import with_derived
from native import Kernels, library_path
from suites.ops import Mixture, OpCase, quantized, route_case, sliced
from tolerances import BY_DTYPE, KERNEL_INT8

from engines.backends.plugins import with_plugins
from exporter.ops import OPS, attributes_of
from exporter.plan.capabilities import Capabilities

ABLE = with_plugins(Capabilities("tensorrt", frozenset(), frozenset({"fp32", "fp16", "bf16"}), True, True, "tensorrt"))
HALF = Mixture(17, hidden=64, dtype="float16")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    path = library_path("emulated")
    if not path.is_file():
        pytest.skip(f"{path.name} is not built (make cpp)")
    return Kernels.load(path)


def given(case: OpCase) -> tuple[list[np.ndarray], dict]:
    """The plugin's inputs and attributes: runtime values of the case, constants of the lowered graph."""
    lowered, (record,) = with_derived(backends.case_model(case), ABLE)
    assert record.chosen == "plugin_tensorrt"
    (node,) = lowered.graph.node
    values = dict(zip(OPS[case.op].inputs, case.inputs(), strict=False))
    values |= {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}
    return [values[name] for name in node.input], attributes_of(node)


def test_a_route(kernels: Kernels) -> None:
    case = route_case("v3", 7)
    (logits, bias), attributes = given(case)
    words = {name: attributes[name] for name in case.attributes}
    experts, weights = kernels.route(0, logits, bias, **words)
    wanted_experts, wanted_weights = OPS["Route"].reference(*case.inputs(), **case.attributes)
    assert np.array_equal(experts, wanted_experts)
    np.testing.assert_allclose(weights, wanted_weights, rtol=BY_DTYPE["float32"].relative)


@pytest.mark.parametrize("case", [sliced(HALF, 2, 4), quantized(HALF, 2, 4, "static"), quantized(HALF, 2, 4, "token")], ids=lambda case: case.name)
def test_experts(kernels: Kernels, case: OpCase) -> None:
    (x, chosen, weights, *rest), attributes = given(case)
    if case.op == "Experts":
        matrices, scales = rest, (None,) * 4
    else:
        gate_up, gate_up_scale, down, down_scale, *static = rest
        matrices, scales = (gate_up, down), (gate_up_scale, down_scale, *(static or (None, None)))
    made = kernels.experts(
        0, x, chosen, weights, *matrices, scales,
        first_expert=attributes["first_expert"], all_experts=attributes["all_experts"], activations=attributes.get("activations", "float"),
    )  # fmt: skip
    wanted = OPS[case.op].reference(*case.inputs(), **case.attributes).astype(np.float64)
    allowed = KERNEL_INT8["float16"] if case.op == "QuantizedExperts" else BY_DTYPE["float16"]
    assert np.linalg.norm(made.astype(np.float64) - wanted) <= allowed.relative * np.linalg.norm(wanted)
