"""Every op case: the numpy reference, the function body in ONNX Runtime and the torch op say the same."""

import backends
import numpy as np
import onnx
import pytest
from suites.ops import CASES, EXPERT_CASES, QUANTIZED_CASES, OpCase
from tolerances import BY_DTYPE, BY_DTYPE_INT8

from exporter.errors import ExportError
from exporter.ops import DOMAIN, OPS, bodies

NOT_ON_ORT_CPU = {case.name: "ONNX Runtime has no bfloat16 MatMul on CPU" for case in CASES if "bfloat16" in case.name}

# Quantised experts have no torch op: they are made of exported graphs.
torch_cases = pytest.mark.parametrize("case", [case for case in CASES if case not in QUANTIZED_CASES], ids=lambda case: case.name)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def expected(case: OpCase) -> list[np.ndarray]:
    return backends.as_list(OPS[case.op].reference(*case.inputs(), **case.attributes))


def assert_same(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        tolerance = BY_DTYPE[other.dtype.name]
        assert one.shape == other.shape
        np.testing.assert_allclose(np.float64(one), np.float64(other), tolerance.relative, tolerance.absolute)


def assert_same_but_for_flips(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for some values that were rounded to a neighbouring int8 step."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    distance = np.linalg.norm(np.float64(one) - np.float64(other))
    assert distance <= BY_DTYPE_INT8[other.dtype.name].relative * np.linalg.norm(np.float64(other))


@every_case
def test_function_body_in_onnxruntime_equals_the_reference(case: OpCase) -> None:
    if case.name in NOT_ON_ORT_CPU:
        pytest.skip(NOT_ON_ORT_CPU[case.name])
    got, wanted = backends.run_onnxruntime(backends.case_model(case), backends.feeds_of(case)), expected(case)
    assert_same_but_for_flips(got[0], wanted[0]) if case.attributes.get("activations") in ("static", "token") else assert_same(got, wanted)


@torch_cases
def test_torch_op_equals_the_reference(case: OpCase) -> None:
    pytest.importorskip("torch")
    assert_same(backends.run_torch(case), expected(case))


@torch_cases
def test_fake_torch_op_and_shape_rule_foretell_the_shapes(case: OpCase) -> None:
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    arrays = case.inputs()
    shapes = OPS[case.op].shapes(*(array.shape for array in arrays), **case.attributes)
    assert [array.shape for array in expected(case)] == list(shapes)
    from exporter.ops import torch_ops  # noqa: F401

    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(backends.to_torch(array)) for array in arrays]
        fake += [None] * (case.op == "Route" and len(fake) == 1)
        name = {"Route": "route", "Experts": "experts", "AllReduce": "all_reduce", "AllGather": "all_gather"}[case.op]
        outputs = getattr(torch.ops.moetrt, name)(*fake, *(value for key, value in case.attributes.items() if key != "axis"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape) for output in outputs] == list(shapes)


@every_case
def test_onnx_checker_accepts_the_body(case: OpCase) -> None:
    onnx.checker.check_model(backends.case_model(case), full_check=True)


@every_case
def test_tensorrt_rtx_parses_the_body(case: OpCase) -> None:
    assert backends.parse(backends.case_model(case))[1] == []


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("how", ["reference", "onnxruntime", "torch"])
def test_experts_of_all_ranks_sum_to_the_whole(ranks: int, how: str) -> None:
    from suites.ops import Mixture, sliced

    mixture = Mixture(tokens=17)
    whole = expected(sliced(mixture, 0, mixture.experts))[0]
    count = mixture.experts // ranks
    run = {
        "reference": expected,
        "onnxruntime": lambda case: backends.run_onnxruntime(backends.case_model(case), backends.feeds_of(case)),
        "torch": backends.run_torch,
    }[how]
    parts = [run(sliced(mixture, rank * count, count))[0] for rank in range(ranks)]
    assert_same([OPS["AllReduce"].reference(*parts, ranks=ranks)], [whole])


def test_a_token_of_other_ranks_gets_zero() -> None:
    case = next(case for case in EXPERT_CASES if case.name == "experts 4-7 of 8, 5 tokens, float32, all on 3")
    assert not backends.run_onnxruntime(backends.case_model(case), backends.feeds_of(case))[0].any()


@pytest.mark.parametrize("ranks", [2, 3])
def test_gathered_parts_lie_in_rank_order(ranks: int) -> None:
    parts = [np.full((1, 2), rank) for rank in range(ranks)]
    gathered = OPS["AllGather"].reference(*parts, ranks=ranks)
    assert gathered.tolist() == [[rank for rank in range(ranks) for _ in range(2)]]
    assert OPS["AllGather"].shapes((1, 2), ranks=ranks) == (gathered.shape,)


def test_a_lone_rank_sees_a_gather_of_the_true_shape() -> None:
    case = OpCase("", "AllGather", lambda: (np.ones((2, 3), np.float32),), {"ranks": 4, "axis": -1})
    assert backends.run_onnxruntime(backends.case_model(case), backends.feeds_of(case))[0].shape == (2, 12)


def test_first_expert_may_differ_between_nodes_of_one_graph() -> None:
    nodes = [onnx.helper.make_node("Experts", list("abcde"), ["y"], domain=DOMAIN, first_expert=first) for first in (0, 8)]
    assert len(bodies(nodes)) == 1


def test_nodes_that_need_different_bodies_are_refused() -> None:
    nodes = [onnx.helper.make_node("AllGather", ["x"], ["y"], name=f"/gather_{ranks}", domain=DOMAIN, ranks=ranks) for ranks in (2, 4)]
    with pytest.raises(ExportError, match="/gather_4"):
        bodies(nodes)


def test_an_unknown_op_of_our_domain_is_refused_with_the_known_names() -> None:
    with pytest.raises(ExportError, match="Route, Experts"):
        bodies([onnx.helper.make_node("Router", ["x"], ["y"], domain=DOMAIN)])
