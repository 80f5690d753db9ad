// Products of each expert's rows and its weights, all experts in one launch: a pipeline of asynchronous copies into shared memory, and tensor cores.
#pragma once

#include "device.cuh"

namespace moetrt::kernels {

// Rows of one expert that one block computes; expert -1 where there is nothing to do.
struct RowTile {
  int expert, first, end;
};

// Operands lie along the summed axis, `depth` numbers a row, a multiple of 16 bytes.
template <typename Element>
struct Product {
  const Element* rows;     // (any, depth)
  const int* source;       // which of `rows` a row is; null: its own number
  const Element* weights;  // (experts, columns, depth)
  const RowTile* tiles;
  int columns, depth;
};

template <typename Element>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<Int8> {
  using Type = std::int32_t;
};

constexpr int kDepthBytes = 128;  // of a row, a stage
constexpr int kChunk = 16;        // bytes of a copy
constexpr int kChunks = kDepthBytes / kChunk;
constexpr int kStepBytes = 32;  // of a row, an instruction

template <int kRows_, int kColumns_, int kWarpsDown_, int kWarpsAcross_, int kStages_>
struct GemmTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_, kStages = kStages_;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarp;
  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpColumns = kColumns / kWarpsAcross;
  static constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;  // instructions of a warp
  static constexpr int kStageBytes = (kRows + kColumns) * kDepthBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0 && kRows * kChunks % kThreads == 0 && kColumns * kChunks % kThreads == 0);
};

// Chunks of a row are exchanged by the row's number, so that eight rows of one chunk lie in different banks.
MOETRT_DEVICE int place_of(int row, int chunk) { return row * kDepthBytes + (chunk ^ row % kChunks) * kChunk; }

// One operand's part of a stage, copied by all threads: a thread has the same chunk of every kThreads / kChunks-th row.
template <int kRows, int kThreads>
struct Loader {
  static constexpr int kCopies = kRows * kChunks / kThreads;
  const std::byte* from[kCopies];
  bool there[kCopies];

  template <typename Find>
  MOETRT_DEVICE void aim(Find find) {
    MOETRT_UNROLL
    for (int copy = 0; copy < kCopies; ++copy) from[copy] = find(row_of(copy), there[copy]);
  }
  static MOETRT_DEVICE int row_of(int copy) { return (thread() + copy * kThreads) / kChunks; }

  // :param offset: of the stage's first byte in a row. :param bytes: of a row.
  MOETRT_DEVICE void copy_stage(std::byte* to, int offset, int bytes) const {
    const int chunk = thread() % kChunks, at = offset + chunk * kChunk;
    MOETRT_UNROLL
    for (int copy = 0; copy < kCopies; ++copy) {
      const bool inside = there[copy] && at < bytes;
      copy_async(to + place_of(row_of(copy), chunk), inside ? from[copy] + at : from[copy], inside);
    }
  }
};

template <typename Tile, typename Element, typename Accumulator>
MOETRT_DEVICE void multiply_stage(Accumulator (&acc)[Tile::kDown][Tile::kAcross][4], const std::byte* rows, const std::byte* columns) {
  const int first_row = warp() / Tile::kWarpsAcross * Tile::kWarpRows + lane() % 16, row_chunk = lane() / 16;
  const int first_column = warp() % Tile::kWarpsAcross * Tile::kWarpColumns + lane() / 16 * 8 + lane() % 8, column_chunk = lane() / 8 % 2;
  MOETRT_UNROLL
  for (int step = 0; step < kDepthBytes / kStepBytes; ++step) {
    std::uint32_t a[Tile::kDown][4], b[Tile::kAcross][2];
    MOETRT_UNROLL
    for (int down = 0; down < Tile::kDown; ++down) load_matrices(a[down], rows + place_of(first_row + down * 16, step * 2 + row_chunk));
    MOETRT_UNROLL
    for (int across = 0; across < Tile::kAcross; across += 2) {
      std::uint32_t both[4];
      load_matrices(both, columns + place_of(first_column + across * 8, step * 2 + column_chunk));
      b[across][0] = both[0];
      b[across][1] = both[1];
      b[across + 1][0] = both[2];
      b[across + 1][1] = both[3];
    }
    MOETRT_UNROLL
    for (int down = 0; down < Tile::kDown; ++down) MOETRT_UNROLL
    for (int across = 0; across < Tile::kAcross; ++across) multiply(acc[down][across], a[down], b[across], Element{});
  }
}

// :param finish: called with expert, row, an even column, and the sums of it and of the next column.
template <typename Tile, typename Element, typename Finish>
MOETRT_KERNEL(Tile::kThreads)
grouped_gemm(Product<Element> product, Finish finish) {
  using Accumulator = typename AccumulatorOf<Element>::Type;
  const RowTile tile = product.tiles[block_row()];
  if (tile.expert < 0) return;
  const int first_column = block() * Tile::kColumns, bytes = product.depth * static_cast<int>(sizeof(Element));
  std::byte* memory = shared_memory();

  Loader<Tile::kRows, Tile::kThreads> rows;
  rows.aim([&](int row, bool& there) {
    there = tile.first + row < tile.end;
    const int number = there ? tile.first + row : tile.first;
    return reinterpret_cast<const std::byte*>(product.rows + static_cast<std::int64_t>(product.source ? product.source[number] : number) * product.depth);
  });
  Loader<Tile::kColumns, Tile::kThreads> columns;
  columns.aim([&](int column, bool& there) {
    there = first_column + column < product.columns;
    const std::int64_t number = static_cast<std::int64_t>(tile.expert) * product.columns + (there ? first_column + column : 0);
    return reinterpret_cast<const std::byte*>(product.weights + number * product.depth);
  });
  const int stages = (bytes + kDepthBytes - 1) / kDepthBytes;
  const auto fetch = [&](int stage) {
    std::byte* to = memory + stage % Tile::kStages * Tile::kStageBytes;
    if (stage < stages) {
      rows.copy_stage(to, stage * kDepthBytes, bytes);
      columns.copy_stage(to + Tile::kRows * kDepthBytes, stage * kDepthBytes, bytes);
    }
    commit_copies();
  };

  Accumulator acc[Tile::kDown][Tile::kAcross][4] = {};
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) fetch(stage);
  for (int stage = 0; stage < stages; ++stage) {
    await_copies<Tile::kStages - 2>();
    sync();  // the stage is there for all, and all are done with the one that the next copies go over
    fetch(stage + Tile::kStages - 1);
    const std::byte* here = memory + stage % Tile::kStages * Tile::kStageBytes;
    multiply_stage<Tile, Element>(acc, here, here + Tile::kRows * kDepthBytes);
  }
  await_copies<0>();

  const int row = tile.first + warp() / Tile::kWarpsAcross * Tile::kWarpRows + lane() / 4;
  const int column = first_column + warp() % Tile::kWarpsAcross * Tile::kWarpColumns + lane() % 4 * 2;
  MOETRT_UNROLL
  for (int down = 0; down < Tile::kDown; ++down) MOETRT_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (row + down * 16 + half * 8 >= tile.end) continue;
    MOETRT_UNROLL
    for (int across = 0; across < Tile::kAcross; ++across)
      if (column + across * 8 < product.columns) finish(tile.expert, row + down * 16 + half * 8, column + across * 8, acc[down][across][half * 2], acc[down][across][half * 2 + 1]);
  }
}

}  // namespace moetrt::kernels
