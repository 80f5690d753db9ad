"""The CUDA kernels against their plain loops and the ops' own references: emulated on a CPU everywhere, on a GPU where there is one."""

import numpy as np
import pytest
from native import REFERENCE, Kernels, library_path
from suites.ops import EXPERT_CASES, QUANTIZED_CASES, ROUTE_CASES, Mixture, OpCase, quantized, sliced
from tolerances import BY_DTYPE, KERNEL_INT8, TENSOR_CORES

from engines.probe import find_nvidia
from exporter.ops import OPS

ORDERS = (0, 1, 11)
"""Of threads and blocks: forwards, backwards, shuffled. On a GPU they have no meaning."""
TILINGS = (0, 1, 2)
ALL_EXPERTS = 8

CROWDED = Mixture(150, top_k=2, hidden=144, width=80, dtype="float16")
"""More rows than a tile has, sums that end within a stage, columns that end within a tile."""


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    path = library_path(request.param)
    if request.param == "cuda" and not find_nvidia().gpus:
        pytest.skip("no CUDA device")
    if not path.is_file():
        pytest.skip(f"{path.name} is not built (make cpp)")
    return Kernels.load(path)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def run_experts(kernels: Kernels, case: OpCase, how: int, tiling: int = -1) -> np.ndarray:
    """The case's inputs as the kernels want them: rows of weights along what is summed, scales without axes of one."""
    x, chosen, weights, *rest = case.inputs()
    first = case.attributes["first_expert"]
    if case.op == "Experts":
        return kernels.experts(
            how,
            x,
            chosen,
            weights,
            *rest,
            first_expert=first,
            all_experts=ALL_EXPERTS,
            activations="float",
            tiling=tiling,
        )
    gate_up, gate_up_scale, down, down_scale, *static = rest
    rows = (np.ascontiguousarray(weight.swapaxes(1, 2)) for weight in (gate_up, down))
    scales = (gate_up_scale, down_scale, *(static or (None, None)))
    return kernels.experts(
        how,
        x,
        chosen,
        weights,
        *rows,
        scales,
        first_expert=first,
        all_experts=ALL_EXPERTS,
        activations=case.attributes["activations"],
        tiling=tiling,
    )


def refusal(case: OpCase) -> str | None:
    """Why the kernels do not take a case; None where they do."""
    dtype = case.inputs()[0].dtype.name
    if case.op == "QuantizedExperts" and case.attributes["activations"] == "float":
        return "int8 weights with float activations are not these kernels' business"
    if case.op == "Experts" and dtype == "float32":
        return "tensor cores have no float32"
    return None


TAKEN = [case for case in (*EXPERT_CASES, *QUANTIZED_CASES) if refusal(case) is None]
HARD = [
    *(
        quantized(CROWDED, first, count, how, all_on)
        for how in ("static", "token")
        for first, count, all_on in ((0, 8, None), (2, 3, None), (0, 8, 5), (4, 4, 1))
    ),
    *(
        sliced(CROWDED, first, count, all_on)
        for first, count, all_on in ((0, 8, None), (5, 2, None), (0, 8, 5))
    ),
]


@pytest.mark.parametrize("how", [REFERENCE, *ORDERS])
@pytest.mark.parametrize("case", ROUTE_CASES, ids=lambda case: case.name)
def test_routes_are_the_ops(kernels: Kernels, case: OpCase, how: int) -> None:
    logits, *bias = case.inputs()
    experts, weights = kernels.route(how, logits, *(bias or [None]), **case.attributes)
    wanted_experts, wanted_weights = OPS["Route"].reference(*case.inputs(), **case.attributes)
    assert np.array_equal(experts, wanted_experts)
    np.testing.assert_allclose(
        weights, wanted_weights, rtol=BY_DTYPE["float32"].relative, atol=BY_DTYPE["float32"].absolute
    )


def test_a_route_by_broken_numbers_names_experts_that_are_there_or_none(kernels: Kernels) -> None:
    """NaN is no choice; nothing is read or written out of bounds, and experts beyond the last are nobody's."""
    case = ROUTE_CASES[2]
    logits, bias = (array.copy() for array in case.inputs())
    logits[3] = np.nan
    experts, _ = kernels.route(0, logits, bias, **case.attributes)
    assert ((experts >= 0) & (experts <= logits.shape[1])).all()
    assert np.array_equal(
        np.delete(experts, 3, 0),
        np.delete(OPS["Route"].reference(*case.inputs(), **case.attributes)[0], 3, 0),
    )


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_plain_loops_are_the_ops(kernels: Kernels, case: OpCase) -> None:
    got, wanted = (
        run_experts(kernels, case, REFERENCE),
        OPS[case.op].reference(*case.inputs(), **case.attributes),
    )
    allowed = KERNEL_INT8[got.dtype.name] if case.op == "QuantizedExperts" else BY_DTYPE[got.dtype.name]
    distance = np.linalg.norm(got.astype(np.float64) - wanted.astype(np.float64))
    assert distance <= allowed.relative * np.linalg.norm(wanted.astype(np.float64))


def assert_like_the_loops(kernels: Kernels, case: OpCase, got: np.ndarray) -> None:
    """To the bit where products are of integers and the exponential is one and the same, as on a CPU."""
    wanted = run_experts(kernels, case, REFERENCE)
    if kernels.emulated and case.op == "QuantizedExperts":
        assert same_bits(got, wanted)
        return
    allowed = TENSOR_CORES[got.dtype.name]
    np.testing.assert_allclose(
        got.astype(np.float32), wanted.astype(np.float32), rtol=allowed.relative, atol=allowed.absolute
    )


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_kernels_are_their_plain_loops(kernels: Kernels, case: OpCase) -> None:
    assert_like_the_loops(kernels, case, run_experts(kernels, case, 0))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_every_tiling_takes_every_routing(kernels: Kernels, case: OpCase, tiling: int) -> None:
    """Experts without tokens, one with all of them, rows that fill no tile."""
    assert_like_the_loops(kernels, case, run_experts(kernels, case, 1, tiling))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("case", [HARD[0], HARD[4], HARD[8]], ids=lambda case: case.name)
def test_numbers_do_not_depend_on_which_thread_is_first(kernels: Kernels, case: OpCase, tiling: int) -> None:
    """Sums have one order. Where a barrier or a wait were missing, orders of threads would differ."""
    first, *others = (run_experts(kernels, case, how, tiling) for how in ORDERS)
    assert all(same_bits(first, other) for other in others)


def test_a_tokens_number_does_not_depend_on_its_neighbours(kernels: Kernels) -> None:
    """Row by row as all at once, as far as the products are of integers."""
    case = quantized(Mixture(9, hidden=64, dtype="float16"), 0, 8, "token")
    x, chosen, weights, *rest = case.inputs()
    together = run_experts(kernels, case, 0)
    for token in (0, 4, 8):
        alone = OpCase(
            case.name,
            case.op,
            lambda t=token: (x[t : t + 1], chosen[t : t + 1], weights[t : t + 1], *rest),
            case.attributes,
        )
        assert same_bits(run_experts(kernels, alone, 0)[0], together[token])


def test_the_order_of_a_tokens_experts_does_not_matter(kernels: Kernels) -> None:
    case = quantized(Mixture(9, hidden=64, dtype="float16"), 0, 8, "static")
    x, chosen, weights, *rest = case.inputs()
    turned = OpCase(
        case.name,
        case.op,
        lambda: (x, chosen[:, ::-1].copy(), weights[:, ::-1].copy(), *rest),
        case.attributes,
    )
    assert same_bits(run_experts(kernels, case, 0), run_experts(kernels, turned, 0))


def test_experts_of_other_ranks_and_ids_that_nobody_has_add_nothing(kernels: Kernels) -> None:
    case = quantized(Mixture(9, dtype="float16"), 2, 4, "static")
    x, _, weights, *rest = case.inputs()
    strange = np.resize(np.array([-1, 0, 1, 6, 7, 99, 2**40, -(2**40)]), weights.shape)
    assert not run_experts(
        kernels, OpCase(case.name, case.op, lambda: (x, strange, weights, *rest), case.attributes), 0
    ).any()


def test_parts_of_all_ranks_sum_to_the_whole(kernels: Kernels) -> None:
    mixture = Mixture(17, dtype="float16")
    whole = run_experts(kernels, sliced(mixture, 0, 8), 0).astype(np.float32)
    parts = sum(
        run_experts(kernels, sliced(mixture, first, 2), 0).astype(np.float32) for first in (0, 2, 4, 6)
    )
    np.testing.assert_allclose(
        parts, whole, rtol=BY_DTYPE["float16"].relative, atol=BY_DTYPE["float16"].absolute
    )


SOUND = {
    "tokens": 4,
    "top_k": 8,
    "hidden": 7168,
    "width": 2048,
    "experts": 16,
    "all_experts": 256,
    "first_expert": 32,
    "numbers": 2,
    "activations": 2,
}


def test_plans_follow_the_expected_rows_of_an_expert(kernels: Kernels) -> None:
    plans = {tokens: kernels.plan(**SOUND | {"tokens": tokens}) for tokens in (1, 64, 1024, 4096)}
    assert [text.splitlines()[0].split(",")[0] for text in plans.values()] == [
        "experts: tiles of 16 rows by 64 columns",
        "experts: tiles of 16 rows by 64 columns",
        "experts: tiles of 64 rows by 128 columns",
        "experts: tiles of 128 rows by 128 columns",
    ]
    assert [line.split(":")[0].strip() for line in plans[1].splitlines()[1:]] == [
        "sort and round",
        "gate and up",
        "round",
        "down",
        "combine",
    ]


def test_plans_fit_into_the_shared_memory_of_every_generation(kernels: Kernels) -> None:
    """The least is 99 KiB a block, of generation 12.0 (CUDA C++ programming guide, compute capabilities)."""
    for tiling in TILINGS:
        shared = [
            int(line.split(", ")[1].split()[0]) for line in kernels.plan(tiling, **SOUND).splitlines()[1:]
        ]
        assert max(shared) <= 99 * 1024


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokens": -1}, "there cannot be -1 tokens"),
        ({"hidden": 100}, "the hidden size is 100, no multiple of 16"),
        ({"width": 0}, "the width of an expert is 0"),
        ({"experts": 0}, "cannot hold 0 experts"),
        ({"first_expert": 250}, "experts 250 to 265 are not among all 256"),
        ({"top_k": 300}, "cannot have 300 experts"),
        ({"numbers": 0, "activations": 0}, "products of float32 are not made here"),
        ({"tokens": 1 << 22}, "too many at once"),
    ],
)
def test_plans_that_cannot_be_are_refused(kernels: Kernels, change: dict[str, int], problem: str) -> None:
    text = kernels.plan(**SOUND | change)
    assert text.startswith("Error: Experts: ")
    assert problem in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"groups": 7}, "256 experts are not so many groups: 7"),
        ({"top_groups": 9}, "cannot keep 9 of 8 groups"),
        ({"top_k": 129}, "cannot choose 129 of 128 experts"),
        ({"top_k": 0}, "cannot choose 0"),
    ],
)
def test_routes_that_cannot_be_are_refused(kernels: Kernels, change: dict[str, int], problem: str) -> None:
    case = ROUTE_CASES[1]
    with pytest.raises(RuntimeError, match=problem):
        kernels.route(0, *case.inputs(), **case.attributes | change)
