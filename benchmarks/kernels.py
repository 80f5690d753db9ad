"""The experts' CUDA kernels on a GPU, at DeepSeek-V3's sizes: time against the roofline, PyTorch's grouped products and a mixture in Triton.

    make cpp && python benchmarks/kernels.py [--experts 16] [--tokens 1 16 256 4096] [--activations static token float] [--json FILE]

For each call the least time that the GPU could need: bytes that must move over the bandwidth that a copy reaches, or operations over the rate that one large
product reaches, whichever is longer; both are measured here, first. The share is that least time over the kernels' time, median of several runs in a CUDA
graph. PyTorch's ``_grouped_mm`` computes the same two products in bfloat16 on rows that are sorted already, without routing, SwiGLU or sum. Triton's
(``triton_experts.py``, the best of its tilings, by token where the kernels round statically) computes all but the sorting, of the same weights. ``--plan``
prints bytes, operations and launches, and needs no GPU. Needs torch with CUDA and ``make cpp`` on a machine with nvcc.
"""

import argparse
import ctypes
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/kernels"))

from native import ACTIVATIONS, NUMBERS, ExpertsParams, ExpertsPointers, Kernels, library_path  # noqa: E402  (beside the tests)

HIDDEN, WIDTH, ALL_EXPERTS, TOP_K = 7168, 2048, 256, 8
"""DeepSeek-V3's (arXiv 2412.19437, section 4.2)."""
REPEATS = 20
BFLOAT16, INT8 = 2, 1
"""Bytes of a number."""


@dataclass(frozen=True)
class Work:
    """What a call cannot do without."""

    rows: int
    """Pairs of a token and a local expert."""
    active: int
    """Local experts that have a row."""
    bytes: int
    """Weights of active experts, read once; activations in and out."""
    operations: int
    """Multiplications and additions of both products."""

    def least_seconds(self, bytes_per_second: float, operations_per_second: float) -> float:
        return max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def work_of(tokens: int, rows: int, active: int, weight_bytes: int, hidden: int = HIDDEN, width: int = WIDTH) -> Work:
    matrix = 3 * hidden * width
    return Work(rows, active, active * matrix * weight_bytes + 2 * tokens * hidden * BFLOAT16, 2 * rows * matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=16, help="of a rank: 16 or 32 of 256")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--activations", nargs="+", choices=list(ACTIVATIONS), default=list(ACTIVATIONS))
    parser.add_argument("--plan", action="store_true", help="print what would be launched, and stop")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.plan:
        kernels = Kernels.load(library_path("emulated"))
        for tokens in asked.tokens:
            print(f"{tokens} tokens, {work_of(tokens, *expected(tokens, asked.experts), INT8)}\n{kernels.plan(**sizes(tokens, asked.experts, 'token'))}")
        return
    rows = measure(asked.experts, asked.tokens, asked.activations)
    print("| activations | tokens | rows | ms | share of the roofline | PyTorch's _grouped_mm over it | Triton over it |\n|---|---|---|---|---|---|---|")
    for row in rows:
        peers = f"{row['torch_over_kernels']} | {row['triton_over_kernels']}"
        print(f"| {row['activations']} | {row['tokens']} | {row['rows']} | {row['ms']:.3f} | {row['share']:.2f} | {peers} |")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


def expected(tokens: int, experts: int) -> tuple[int, int]:
    """Rows and active experts where all experts are as likely."""
    rows = tokens * TOP_K * experts // ALL_EXPERTS
    return rows, round(experts * (1 - (1 - TOP_K / ALL_EXPERTS) ** tokens))


def sizes(tokens: int, experts: int, activations: str) -> dict[str, int]:
    return {
        "tokens": tokens, "top_k": TOP_K, "hidden": HIDDEN, "width": WIDTH, "experts": experts, "all_experts": ALL_EXPERTS, "first_expert": 0,
        "numbers": NUMBERS["bfloat16"], "activations": ACTIVATIONS[activations],
    }  # fmt: skip


def measure(experts: int, tokens: list[int], activations: list[str]) -> list[dict[str, Any]]:
    import torch

    kernels, found = Kernels.load(library_path("cuda")), []
    bandwidth, rates = copy_rate(torch), {"float": product_rate(torch, torch.bfloat16), "int8": product_rate(torch, torch.int8)}
    print(f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s; products {rates['float'] / 1e12:.0f} (bfloat16), {rates['int8'] / 1e12:.0f} (int8) T/s")
    for how in activations:
        weights = random_weights(torch, experts, how)
        for count in tokens:
            chosen = torch.rand(count, ALL_EXPERTS, device="cuda").topk(TOP_K).indices
            local = chosen[chosen < experts]
            work = work_of(count, local.numel(), local.unique().numel(), BFLOAT16 if how == "float" else INT8)
            x, shares = torch.randn(count, HIDDEN, device="cuda", dtype=torch.bfloat16), torch.rand(chosen.shape, device="cuda")
            seconds = timed(torch, bound(torch, kernels, weights, x, chosen, shares, sizes(count, experts, how)))
            share = work.least_seconds(bandwidth, rates["float" if how == "float" else "int8"]) / seconds
            found.append({
                "activations": how, "tokens": count, **asdict(work), "ms": seconds * 1e3, "share": share,
                "torch_over_kernels": grouped(torch, local, experts, seconds), "triton_over_kernels": in_triton(torch, weights, x, chosen, shares, seconds),
            })  # fmt: skip
    return found


def random_weights(torch: Any, experts: int, how: str) -> dict[str, Any]:
    def matrix(*shape: int) -> Any:
        if how == "float":
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(shape[-1] ** -0.5)
        return torch.randint(-127, 128, shape, device="cuda", dtype=torch.int8)

    def scale(*shape: int) -> Any:
        return torch.full(shape, 1e-4, device="cuda", dtype=torch.bfloat16)

    made = {"gate_up": matrix(experts, 2 * WIDTH, HIDDEN), "down": matrix(experts, HIDDEN, WIDTH)}
    if how != "float":
        made |= {"gate_up_scale": scale(experts, 2 * WIDTH), "down_scale": scale(experts, HIDDEN)}
    if how == "static":
        made |= {"x_scale": torch.full((), 0.03, device="cuda", dtype=torch.bfloat16), "h_scale": torch.full((experts,), 0.03, device="cuda", dtype=torch.bfloat16)}
    return made


def bound(torch: Any, kernels: Kernels, weights: dict[str, Any], x: Any, chosen: Any, shares: Any, params: dict[str, int]) -> Callable[[], None]:
    """A call on the device's own memory, on the current stream."""
    library, asked = kernels.library, ExpertsParams(**params)
    library.moetrt_kernels_workspace.restype = ctypes.c_size_t
    held = weights | {
        "x": x, "experts": chosen, "weights": shares, "y": torch.empty_like(x),
        "workspace": torch.empty(library.moetrt_kernels_workspace(ctypes.byref(asked)), device="cuda", dtype=torch.uint8),
    }  # fmt: skip
    pointers = ExpertsPointers(**{name: array.data_ptr() for name, array in held.items()})

    def run(held: Any = held) -> None:
        problem = library.moetrt_kernels_launch(ctypes.byref(asked), ctypes.byref(pointers), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
        if problem:
            raise RuntimeError(problem.decode())

    return run


def timed(torch: Any, run: Callable[[], Any]) -> float:
    """Seconds of a run in a CUDA graph: the median of several, the second level's cache emptied before each."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph, other = torch.cuda.CUDAGraph(), torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPEATS):
        other.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_rate(torch: Any) -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    source, target = (torch.empty(2 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    return 2 * source.numel() / timed(torch, lambda: target.copy_(source))


def product_rate(torch: Any, dtype: Any) -> float:
    """Operations per second of a square product of 8192."""
    size = 8192
    left, right = (torch.ones(size, size, device="cuda", dtype=dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    return 2 * size**3 / timed(torch, lambda: multiply(left, right.t()))


def grouped(torch: Any, local: Any, experts: int, seconds: float) -> str:
    """How many times as long PyTorch takes for the two products alone, in bfloat16; why not, where it does not run."""
    counts = torch.bincount(local, minlength=experts)
    ends = counts.cumsum(0).to(torch.int32)
    rows = torch.randn(local.numel(), HIDDEN, device="cuda", dtype=torch.bfloat16)
    first = torch.randn(experts, HIDDEN, 2 * WIDTH, device="cuda", dtype=torch.bfloat16)
    second = torch.randn(experts, WIDTH, HIDDEN, device="cuda", dtype=torch.bfloat16)
    try:
        both = timed(torch, lambda: torch._grouped_mm(torch._grouped_mm(rows, first, offs=ends)[:, :WIDTH].contiguous(), second, offs=ends))
    except (AttributeError, RuntimeError) as cause:
        return f"skipped: {cause}".splitlines()[0]
    return f"{both / seconds:.2f}"


def in_triton(torch: Any, weights: dict[str, Any], x: Any, chosen: Any, shares: Any, seconds: float) -> str:
    """How many times as long the best tiling of a mixture in Triton takes, and which it is; why not, where Triton does not run."""
    try:
        import triton_experts as peer
    except ImportError as cause:
        return f"skipped: {cause}"

    def of(tiling: Any) -> Callable[[], Any]:
        tiles = peer.Tiles.of(chosen, len(weights["down"]), tiling.rows)
        return lambda: peer.experts(x, shares, weights, tiles, tiling)

    least, tiling = peer.fastest(of, lambda run: timed(torch, run))
    return f"{least / seconds:.2f} ({tiling.rows} x {tiling.columns} x {tiling.depth})"


if __name__ == "__main__":
    main()
