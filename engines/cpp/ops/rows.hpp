// Rows of float32 as digits of int8, and what is done to rows beside products: all in one order, so that processors and threads agree to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "packed.hpp"

namespace moetrt::ops {

// Memory by cache lines: a row of a tile that lies across two of them is read at a sixth of the speed.
template <typename T>
struct ByLines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, std::size_t /*count*/) { ::operator delete(memory, kLine); }
  friend bool operator==(const ByLines& /*one*/, const ByLines& /*other*/) { return true; }
};

// How rows are rounded: into one digit by a given scale (int8 by calibration); by each row's own range into one digit; into two, which is
// finer than float16; or into three, float32's own precision, so that a product rounds as one of floats does. For matrices of floats, not at all.
enum class Rounding { fixed, row, fine, exact, none };

constexpr std::size_t digits_of(Rounding rounding) { return rounding == Rounding::none ? 0 : rounding == Rounding::exact ? 3 : rounding == Rounding::fine ? 2 : 1; }

// Tokens as rows of digits, the most significant first; x = scale · Σ digit · 256^place. Without digits, as rows of floats.
struct Rows {
  std::size_t tokens = 0, digits = 1, inputs = 0, block = 0;
  std::size_t depth = 0, stride = 0;                      // inputs filled up to a multiple of 64; bytes from row to row
  std::vector<std::int8_t, ByLines<std::int8_t>> values;  // (tokens · digits filled up to a multiple of 16, stride): what fills is zero
  std::vector<std::int32_t> sums;                         // (tokens · digits, inputs / block)
  std::vector<float> scales;                              // (tokens)
  std::vector<float, ByLines<float>> floats;              // (tokens, wide()), where there are no digits: what fills is zero

  [[nodiscard]] std::size_t rows() const { return tokens * digits; }
  [[nodiscard]] std::size_t blocks() const { return inputs / block; }
  [[nodiscard]] std::size_t wide() const { return filled(inputs, 2); }
  // For so many tokens; what it held is gone.
  void resize(std::size_t tokens, std::size_t digits, std::size_t inputs, std::size_t block);
  // A token of `from`, which has digits and blocks alike, as the token `place`.
  void copy(std::size_t place, const Rows& from, std::size_t token);
};

// Token `place` of `rows` from `x`, (inputs). `fixed`: the scale of Rounding::fixed. A row with a NaN or an infinity gets the scale NaN.
void round(const float* x, Rounding rounding, float fixed, Rows& rows, std::size_t place);

using Sums = std::vector<std::int32_t, ByLines<std::int32_t>>;

// One panel's outputs: y[token][output] (stride floats from token to token). `room`: kept from call to call.
void multiply(const Packed& matrix, std::size_t panel, const Rows& rows, float* y, std::size_t stride, Sums& room);

// h = gate / (1 + e^-gate) · up, sixteen of each.
void swiglu(const float* gate, const float* up, float* h);

// y = x / √(mean of x² + epsilon) · weight, of so many floats; a multiple of 16.
void normed(const float* x, const float* weight, std::size_t count, float epsilon, float* y);

// The largest of so many numbers.
float largest(const float* x, std::size_t count);

// x = e^(x − most), of `count` numbers, and zero for what fills them up to a multiple of 16. Their sum is what it returns.
float soften(float* x, std::size_t count, float most);

// e^x.
float exponential_of(float x);

// y = factor · y + x, of so many floats; a multiple of 16.
void blend(float* y, float factor, const float* x, std::size_t count);

// y += weight · x, of so many floats; a multiple of 16.
void add(float* y, const float* x, float weight, std::size_t count);

}  // namespace moetrt::ops
