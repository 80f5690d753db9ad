// What happens to rows before and after products: sorted by expert, rounded to int8, and summed to tokens again.
#pragma once

#include "device.cuh"
#include "experts.hpp"
#include "grouped_gemm.cuh"

namespace moetrt::kernels {

// A slot is a token's place for one of its experts; a row is a slot whose expert is here, rows being sorted by expert and then by slot.
struct Sorting {
  const std::int64_t* experts;  // by slot
  const float* weights;         // by slot
  int slots, top_k, first_expert, count, tile_rows, tiles;
  int* token_of_row;
  float* weight_of_row;
  int* row_of_slot;  // -1 where the expert is not here
  RowTile* tile_table;
  int* total;

  MOETRT_DEVICE int local(int slot) const {
    const std::int64_t expert = experts[slot] - first_expert;
    return expert >= 0 && expert < count ? static_cast<int>(expert) : -1;
  }
};

// Block e finds where expert e's rows begin from a count of all slots, and puts them there: no block waits for another.
MOETRT_DEVICE void sort_rows(const Sorting& sorting, int expert) {
  int* counts = reinterpret_cast<int*>(shared_memory());
  int* of_warp = counts + sorting.count;
  for (int other = thread(); other < sorting.count; other += threads()) counts[other] = 0;
  sync();
  for (int slot = thread(); slot < sorting.slots; slot += threads()) {
    const int other = sorting.local(slot);
    if (other >= 0)
      add_shared(&counts[other], 1);
    else if (expert == 0)
      sorting.row_of_slot[slot] = -1;
  }
  sync();
  int row = 0, tile = 0;
  for (int other = 0; other < expert; ++other) {
    row += counts[other];
    tile += (counts[other] + sorting.tile_rows - 1) / sorting.tile_rows;
  }
  const int end = row + counts[expert], tiles = (counts[expert] + sorting.tile_rows - 1) / sorting.tile_rows;
  for (int own = thread(); own < tiles; own += threads()) {
    const int first = row + own * sorting.tile_rows;
    sorting.tile_table[tile + own] = {expert, first, first + sorting.tile_rows < end ? first + sorting.tile_rows : end};
  }
  if (expert == sorting.count - 1) {
    for (int unused = tile + tiles + thread(); unused < sorting.tiles; unused += threads()) sorting.tile_table[unused] = {-1, 0, 0};
    if (thread() == 0) *sorting.total = end;
  }
  for (int first = 0; first < sorting.slots; first += threads()) {
    const int slot = first + thread();
    const bool mine = slot < sorting.slots && sorting.local(slot) == expert;
    const unsigned votes = ballot(mine);
    if (lane() == 0) of_warp[warp()] = ones(votes);
    sync();
    int at = row + ones(votes & ((1u << lane()) - 1u));
    for (int other = 0; other < threads() / kWarp; ++other) {
      if (other < warp()) at += of_warp[other];
      row += of_warp[other];
    }
    if (mine) {
      sorting.token_of_row[at] = slot / sorting.top_k;
      sorting.weight_of_row[at] = sorting.weights[slot];
      sorting.row_of_slot[slot] = at;
    }
    sync();
  }
}

MOETRT_DEVICE float largest_of_block(float value, float* of_warp) {
  value = largest_of_warp(value);
  if (lane() == 0) of_warp[warp()] = value;
  sync();
  for (int other = 0; other < threads() / kWarp; ++other) value = of_warp[other] > value ? of_warp[other] : value;
  return value;
}

template <typename Number>
struct alignas(4 * sizeof(Number)) Four {
  Number at[4];
};

// A row of `width` numbers to int8, by `fixed` or by its own range; the scale goes to `scale` where that is not null.
template <typename Number>
MOETRT_DEVICE void round_row(const Number* row, int width, const Number* fixed, Int8* into, float* scale) {
  const auto* from = reinterpret_cast<const Four<Number>*>(row);
  float step;
  if (fixed) {
    step = widen(*fixed);
  } else {
    float largest = 0;
    for (int four = thread(); four < width / 4; four += threads()) {
      const Four<Number> numbers = from[four];
      for (const Number number : numbers.at) {
        const float value = widen(number), size = value < 0 ? -value : value;
        largest = size > largest ? size : largest;
      }
    }
    largest = largest_of_block(largest, reinterpret_cast<float*>(shared_memory()));
    step = quotient(largest > kLeastRange ? largest : kLeastRange, 127.0f);
  }
  for (int four = thread(); four < width / 4; four += threads()) {
    const Four<Number> numbers = from[four];
    Four<Int8> rounded;
    for (int place = 0; place < 4; ++place) rounded.at[place] = to_int8(quotient(widen(numbers.at[place]), step));
    reinterpret_cast<Four<Int8>*>(into)[four] = rounded;
  }
  if (scale && thread() == 0) *scale = step;
}

// Blocks below sorting.count sort, each for its expert; the others round a token each.
template <typename Number>
MOETRT_KERNEL(kRowThreads)
prepare_kernel(Sorting sorting, const Number* x, int hidden, const Number* x_scale, Int8* rounded, float* scales) {
  if (block() < sorting.count) {
    sort_rows(sorting, block());
    return;
  }
  const std::int64_t token = block() - sorting.count;
  round_row(x + token * hidden, hidden, x_scale, rounded + token * hidden, scales + token);
}

// What goes into `down`, to int8 by each row's own range.
template <typename Wide>
MOETRT_KERNEL(kRowThreads)
round_kernel(const int* total, const Wide* wide, int width, Int8* rounded, float* scales) {
  const std::int64_t row = block();
  if (row >= *total) return;
  round_row(wide + row * width, width, static_cast<const Wide*>(nullptr), rounded + row * width, scales + row);
}

// A token's parts, summed in the order of experts whatever the order of its slots.
template <typename Number>
MOETRT_KERNEL(kRowThreads)
combine_kernel(const Number* parts, const int* row_of_slot, int top_k, int hidden, Number* y) {
  int* rows = reinterpret_cast<int*>(shared_memory());
  const std::int64_t token = block();
  const int* own = row_of_slot + token * top_k;
  for (int slot = thread(); slot < top_k; slot += threads()) {
    int before = 0;
    for (int other = 0; other < top_k; ++other) before += own[other] < own[slot] || (own[other] == own[slot] && other < slot);
    rows[before] = own[slot];
  }
  sync();
  const int four = block_row() * threads() + thread();
  if (four >= hidden / 4) return;
  float total[4] = {};
  for (int slot = 0; slot < top_k; ++slot) {
    if (rows[slot] < 0) continue;
    const Four<Number> part = reinterpret_cast<const Four<Number>*>(parts + static_cast<std::int64_t>(rows[slot]) * hidden)[four];
    for (int place = 0; place < 4; ++place) total[place] = sum(total[place], widen(part.at[place]));
  }
  Four<Number> made;
  for (int place = 0; place < 4; ++place) narrow(total[place], made.at[place]);
  reinterpret_cast<Four<Number>*>(y + token * hidden)[four] = made;
}

}  // namespace moetrt::kernels
