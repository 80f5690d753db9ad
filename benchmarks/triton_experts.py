"""A mixture of experts in Triton, the peer of our CUDA kernels: two grouped products, SwiGLU fused into the first, the weighted sum into the second.

What Triton kernels of serving systems do: rows are sorted by expert and padded to whole tiles beforehand (``Tiles``), a program takes a tile of rows and a
tile of outputs. INT8 is by token and by output, products have int32 sums; rows of the intermediate are rounded by a kernel of their own. The sum over a
token's experts is made by atomic additions of float32, so its order is not fixed, which ours is. Sorting is not part of the measured calls, which ours is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

LARGEST = 127


@dataclass(frozen=True)
class Tiling:
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILINGS = (
    Tiling(16, 64, 128, 4, 4), Tiling(16, 64, 256, 4, 3), Tiling(16, 128, 128, 4, 4), Tiling(16, 32, 256, 4, 4), Tiling(64, 64, 64, 4, 4),
    Tiling(64, 128, 64, 4, 4), Tiling(64, 128, 128, 8, 3), Tiling(128, 128, 64, 8, 4), Tiling(128, 128, 128, 8, 3), Tiling(128, 256, 64, 8, 3),
)  # fmt: skip
"""What is tried at every size; the fastest counts."""


@dataclass(frozen=True)
class Tiles:
    """Pairs of a token and a local expert, sorted by expert, every expert's padded to whole tiles of rows.

    ``pairs`` is int32 (tiles · rows): the index of a pair in ``experts`` laid flat, or -1; ``expert`` is int32 (tiles): whose rows a tile has.
    """

    pairs: torch.Tensor
    expert: torch.Tensor

    @classmethod
    def of(cls, experts: torch.Tensor, local: int, rows: int) -> "Tiles":
        flat, pairs, owners = experts.flatten(), [], []
        for expert in range(local):
            mine = (flat == expert).nonzero().flatten()
            count = -(-mine.numel() // rows)
            pairs.append(torch.nn.functional.pad(mine, (0, count * rows - mine.numel()), value=-1))
            owners += [expert] * count
        return cls(torch.cat(pairs).to(torch.int32), torch.tensor(owners, dtype=torch.int32, device=experts.device))


@triton.jit
def _product(left, left_row, weights, weight_row, there, size, depth: tl.constexpr, sums: tl.constexpr):
    """Rows of ``left`` by rows of ``weights``, in tiles of ``depth``: (rows, columns)."""
    along = tl.arange(0, depth)
    left_at, weight_at = left + left_row[:, None] * size + along[None, :], weights + weight_row[None, :] * size + along[:, None]
    total = tl.zeros((left_row.shape[0], weight_row.shape[0]), sums)
    for begin in range(0, size, depth):
        inside = begin + along < size
        a = tl.load(left_at + begin, there[:, None] & inside[None, :], 0)
        b = tl.load(weight_at + begin, inside[:, None], 0)
        total = tl.dot(a, b, total, out_dtype=sums)
    return total


@triton.jit
def _gate_up(x, x_scale, weights, scales, pairs, owners, h, hidden, width, top_k, whole: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr):
    """``h`` (tiles · rows, width): SwiGLU of a tile of rows. ``whole``: int8 with scales."""
    tile, column = tl.program_id(0), tl.program_id(1) * columns + tl.arange(0, columns)
    slot = tile * rows + tl.arange(0, rows)
    pair = tl.load(pairs + slot)
    there, token, expert = pair >= 0, (pair // top_k).to(tl.int64), tl.load(owners + tile).to(tl.int64)
    sums: tl.constexpr = tl.int32 if whole else tl.float32
    at = 2 * (expert * width + column % width)
    gate = _product(x, token, weights, at, there, hidden, depth, sums)
    up = _product(x, token, weights, at + 1, there, hidden, depth, sums)
    if whole:
        by_row = tl.load(x_scale + token, there, 0)[:, None]
        gate = gate.to(tl.float32) * by_row * tl.load(scales + at)[None, :].to(tl.float32)
        up = up.to(tl.float32) * by_row * tl.load(scales + at + 1)[None, :].to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(h + slot[:, None].to(tl.int64) * width + column[None, :], value.to(h.dtype.element_ty), (column < width)[None, :])


@triton.jit
def _down(h, h_scale, weights, scales, pairs, owners, shares, y, hidden, width, top_k, whole: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr):
    """Adds a tile's outputs, weighted, to ``y`` (tokens, hidden) float32."""
    tile, column = tl.program_id(0), tl.program_id(1) * columns + tl.arange(0, columns)
    slot = tile * rows + tl.arange(0, rows)
    pair = tl.load(pairs + slot)
    there, expert = pair >= 0, tl.load(owners + tile).to(tl.int64)
    sums: tl.constexpr = tl.int32 if whole else tl.float32
    at = expert * hidden + column % hidden
    value = _product(h, slot.to(tl.int64), weights, at, there, width, depth, sums).to(tl.float32)
    if whole:
        value = value * tl.load(h_scale + slot)[:, None] * tl.load(scales + at)[None, :].to(tl.float32)
    value = value * tl.load(shares + pair, there, 0)[:, None]
    tl.atomic_add(y + (pair // top_k)[:, None].to(tl.int64) * hidden + column[None, :], value, there[:, None] & (column < hidden)[None, :], sem="relaxed")


@triton.jit
def _round(x, whole, scale, size, block: tl.constexpr):
    """A row to int8 by its own largest value."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    value = tl.load(x + row * size + column, column < size, 0).to(tl.float32)
    by = tl.maximum(tl.max(tl.abs(value)), 1e-30) / 127
    nearest = value / by
    nearest = tl.where(nearest < 0, nearest - 0.5, nearest + 0.5)
    tl.store(whole + row * size + column, nearest.to(tl.int8), column < size)
    tl.store(scale + row, by)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in int8 and their scales in float32."""
    whole, scale = torch.empty_like(x, dtype=torch.int8), torch.empty(x.shape[0], device=x.device)
    _round[(x.shape[0],)](x, whole, scale, x.shape[1], block=triton.next_power_of_2(x.shape[1]))
    return whole, scale


def experts(x: torch.Tensor, shares: torch.Tensor, weights: dict[str, torch.Tensor], tiles: Tiles, tiling: Tiling) -> torch.Tensor:
    """A rank's part of the mixture, (tokens, hidden) in the type of ``x``.

    ``weights`` has ``gate_up`` (experts, 2 · width, hidden), rows of gate and up in turns, and ``down`` (experts, hidden, width); int8 ones with ``gate_up_scale`` and ``down_scale`` by
    output. ``shares`` is float32 (tokens, top-k).
    """
    gate_up, down = weights["gate_up"], weights["down"]
    whole, (tokens, hidden), width = gate_up.dtype == torch.int8, x.shape, down.shape[2]
    y, slots = torch.zeros(tokens, hidden, device=x.device), tiles.pairs.numel()
    if not slots:
        return y.to(x.dtype)
    sizes = {"rows": tiling.rows, "columns": tiling.columns, "depth": tiling.depth, "num_warps": tiling.warps, "num_stages": tiling.stages}
    count, top_k = tiles.expert.numel(), shares.shape[1]
    left, left_scale = rounded(x) if whole else (x, None)
    h = torch.empty(slots, width, device=x.device, dtype=x.dtype)
    _gate_up[(count, triton.cdiv(width, tiling.columns))](
        left, left_scale, gate_up, weights.get("gate_up_scale"), tiles.pairs, tiles.expert, h, hidden, width, top_k, whole=whole, **sizes
    )
    middle, middle_scale = rounded(h) if whole else (h, None)
    _down[(count, triton.cdiv(hidden, tiling.columns))](
        middle, middle_scale, down, weights.get("down_scale"), tiles.pairs, tiles.expert, shares, y, hidden, width, top_k, whole=whole, **sizes
    )
    return y.to(x.dtype)


def fastest(run: Callable[[Tiling], Callable[[], Any]], timed: Callable[[Callable[[], Any]], float]) -> tuple[float, Tiling]:
    """Seconds of the best of ``TILINGS``, which it is; those that the GPU has no room for are left out."""
    found = []
    for tiling in TILINGS:
        try:
            found.append((timed(run(tiling)), tiling))
        except triton.runtime.errors.OutOfResources:
            continue
    if not found:
        raise RuntimeError("no tiling of TILINGS fits this GPU")
    return min(found, key=lambda pair: pair[0])
