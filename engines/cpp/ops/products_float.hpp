// Products of floats: rows of float32 by a panel of bfloat16 or float32. One source for all kinds of processor, each giving `Isa`, sixteen numbers
// side by side. Two sums for each output, of the even and of the odd inputs, each by fused multiply-adds in order: so the same bits everywhere.
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
  for (std::size_t input = 0; input < product.inputs; input += 2, panel += 2 * kLanes * Bits / 8) {
    __builtin_prefetch(panel + kFloatAhead);
    Vector here, next;
    if constexpr (Bits == 16) {
      Isa::load_bfloat16(panel, here, next);
    } else {
      here = Isa::load(reinterpret_cast<const float*>(panel));
      next = Isa::load(reinterpret_cast<const float*>(panel) + kLanes);
    }
#pragma GCC unroll 12
    for (std::size_t row = 0; row < Rows; ++row) {
      even[row] = Isa::add_product(here, values[row * product.stride + input], even[row]);
      odd[row] = Isa::add_product(next, values[row * product.stride + input + 1], odd[row]);
    }
  }
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

}  // namespace moetrt::ops
