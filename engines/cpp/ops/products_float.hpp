// Products of floats. One source for all kinds of processor, each giving `Isa`, sixteen numbers side by side, and the same order of fused
// multiply-adds for all: so the same bits everywhere. Rows by a panel of bfloat16 or float32 have two sums for each output, of the even and of the
// odd inputs; rows by rows have sixteen, of every sixteenth input.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "packed.hpp"
#include "products.hpp"

namespace moetrt::ops {

constexpr std::size_t kFloatAhead = 4096;  // bytes that are asked for before they are needed

template <typename Isa, std::size_t Rows, int Bits>
void multiply_floats(const FloatProduct& product, std::size_t first) {
  using Vector = typename Isa::Vector;
  Vector even[Rows], odd[Rows];
  for (std::size_t row = 0; row < Rows; ++row) even[row] = odd[row] = Isa::zero();
  const std::uint8_t* panel = product.panel;
  const float* values = product.values + first * product.stride;
  const std::size_t step = Bits == 16 ? 2 * kLanes : product.step * sizeof(float);  // bytes from input to input
  std::size_t input = 0;
  for (; input + 1 < product.inputs; input += 2, panel += 2 * step) {
    __builtin_prefetch(panel + kFloatAhead);
    Vector here, next;
    if constexpr (Bits == 16) {
      Isa::load_bfloat16(panel, here, next);
    } else {
      here = Isa::load(reinterpret_cast<const float*>(panel));
      next = Isa::load(reinterpret_cast<const float*>(panel + step));
    }
#pragma GCC unroll 12
    for (std::size_t row = 0; row < Rows; ++row) {
      even[row] = Isa::add_product(here, values[row * product.stride + input], even[row]);
      odd[row] = Isa::add_product(next, values[row * product.stride + input + 1], odd[row]);
    }
  }
  if constexpr (Bits == 32)
    if (input < product.inputs)
      for (std::size_t row = 0; row < Rows; ++row) even[row] = Isa::add_product(Isa::load(reinterpret_cast<const float*>(panel)), values[row * product.stride + input], even[row]);
  for (std::size_t row = 0; row < Rows; ++row) Isa::store(product.y + (first + row) * product.y_stride, Isa::add(even[row], odd[row]));
}

// All rows, `Isa::kAtOnce` at a time.
template <typename Isa, int Bits, std::size_t Rows = Isa::kAtOnce>
void multiply_all_floats(const FloatProduct& product, std::size_t first = 0) {
  for (; first + Rows <= product.rows; first += Rows) multiply_floats<Isa, Rows, Bits>(product, first);
  if constexpr (Rows > 1) multiply_all_floats<Isa, Bits, Rows - 1>(product, first);
}

template <typename Isa, int Bits>
void multiply_rows(const FloatProduct& product) {
  multiply_all_floats<Isa, Bits>(product);
}

template <typename Isa, std::size_t Rows, std::size_t Columns>
void dot_some(const Dots& dots, std::size_t row, std::size_t column) {
  using Vector = typename Isa::Vector;
  Vector sums[Rows][Columns];
  for (auto& of_row : sums)
    for (Vector& sum : of_row) sum = Isa::zero();
  const float *rows = dots.rows + row * dots.row_stride, *columns = dots.columns + column * dots.column_stride;
  const auto add = [&](std::size_t input, const auto& load) {
    Vector others[Columns];
    for (std::size_t other = 0; other < Columns; ++other) others[other] = load(columns + other * dots.column_stride + input);
    for (std::size_t one = 0; one < Rows; ++one) {
      const Vector here = load(rows + one * dots.row_stride + input);
      for (std::size_t other = 0; other < Columns; ++other) sums[one][other] = Isa::add_products(here, others[other], sums[one][other]);
    }
  };
  std::size_t input = 0;
  for (; input + kLanes <= dots.inputs; input += kLanes) add(input, [](const float* from) { return Isa::load(from); });
  if (input < dots.inputs) add(input, [&](const float* from) { return Isa::load_some(from, dots.inputs - input); });
  for (std::size_t one = 0; one < Rows; ++one)
    for (std::size_t other = 0; other < Columns; ++other) dots.y[(row + one) * dots.y_stride + column + other] = Isa::sum(sums[one][other]);
}

template <typename Isa, std::size_t Columns>
void dot_columns(const Dots& dots, std::size_t column) {
  std::size_t row = 0;
  for (; row + Isa::kTile <= dots.row_count; row += Isa::kTile) dot_some<Isa, Isa::kTile, Columns>(dots, row, column);
  for (; row < dots.row_count; ++row) dot_some<Isa, 1, Columns>(dots, row, column);
}

template <typename Isa>
void dot_all(const Dots& dots) {
  std::size_t column = 0;
  for (; column + Isa::kTile <= dots.column_count; column += Isa::kTile) dot_columns<Isa, Isa::kTile>(dots, column);
  for (; column < dots.column_count; ++column) dot_columns<Isa, 1>(dots, column);
}

}  // namespace moetrt::ops
