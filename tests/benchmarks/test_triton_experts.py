"""The Triton peer computes what our kernels do: held to the ops' references in Triton's interpreter, on a CPU."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.ops import Mixture, OpCase, quantized, sliced

from exporter.ops import OPS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which another file of tests may do


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")
    import triton_experts

    return triton_experts


def given(peer, case: OpCase, rows: int):
    import torch

    def tensor(array: np.ndarray):
        array = np.ascontiguousarray(array)
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype.name == "bfloat16" else torch.from_numpy(array)

    x, chosen, shares, *rest = case.inputs()
    if case.op == "Experts":
        weights = dict(zip(("gate_up", "down"), map(tensor, rest), strict=True))
    else:
        gate_up, gate_up_scale, down, down_scale = map(tensor, rest)
        weights = {
            "gate_up": gate_up.mT.contiguous(), "down": down.mT.contiguous(), "gate_up_scale": gate_up_scale.reshape(len(gate_up), -1),
            "down_scale": down_scale.reshape(len(down), -1),
        }  # fmt: skip
    tiles = peer.Tiles.of(tensor(chosen) - case.attributes["first_expert"], len(weights["down"]), rows)
    return tensor(x), tensor(shares), weights, tiles


MIXTURE = Mixture(37, top_k=2, hidden=80, width=48, dtype="float16")
CASES = [
    sliced(MIXTURE, 0, 8), sliced(MIXTURE, 5, 2), sliced(MIXTURE, 0, 8, 5), sliced(MIXTURE, 4, 4, 1), quantized(MIXTURE, 0, 8, "token"),
    quantized(MIXTURE, 2, 3, "token"), quantized(MIXTURE, 0, 8, "token", 5), quantized(MIXTURE, 4, 4, "token", 1),
]  # fmt: skip


@pytest.mark.parametrize("tiling", [(16, 64, 128), (64, 32, 32)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_peer_computes_the_op(peer, case: OpCase, tiling: tuple[int, int, int]) -> None:
    got = peer.experts(*given(peer, case, tiling[0]), peer.Tiling(*tiling, warps=4, stages=2)).float().numpy()
    wanted = OPS[case.op].reference(*case.inputs(), **case.attributes).astype(np.float32)
    assert np.linalg.norm(got - wanted) <= 2e-3 * np.linalg.norm(wanted)


def test_the_fastest_tiling_counts_and_one_without_room_does_not(peer) -> None:
    def timed(tiling):
        if tiling.rows < 64:
            raise peer.triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        return tiling.rows / tiling.columns

    seconds, tiling = peer.fastest(lambda tiling: tiling, timed)
    assert (seconds, tiling.rows, tiling.columns) == (0.5, 64, 128)


def test_the_benchmark_of_kernels_takes_the_best_tiling(peer, monkeypatch) -> None:
    import kernels
    import torch

    x, shares, weights, _ = given(peer, CASES[0], 16)
    chosen = torch.from_numpy(CASES[0].inputs()[1])
    monkeypatch.setattr(kernels, "timed", lambda _, run: float(torch.isfinite(run()).all()) + len(peer.TILINGS))
    assert kernels.in_triton(torch, weights, x, chosen, shares, 2.0) == f"{(1 + len(peer.TILINGS)) / 2:.2f} (16 x 64 x 128)"
