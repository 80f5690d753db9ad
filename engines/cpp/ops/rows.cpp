#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "products.hpp"

// One source for each kind of processor; the same operations in the same order (no contraction), so the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

namespace moetrt::ops {
namespace {

constexpr float kLeast = 6.103515625e-05f;  // the least range of a token that is rounded to int8: FLOOR in exporter/ops/quantized_experts.py
constexpr float kMost8 = 127.0f;
constexpr float kMost16 = 32639.0f;    // 127 · 256 + 127: the largest number of two digits of −128 to 127
constexpr float kMost24 = 8355700.0f;  // a little less than three digits hold, 127 · 256² + 127 · 256 + 127: the division may round up
constexpr float kTiny = 1e-30f;
constexpr std::size_t kLine = 64;  // that rows lie further apart than they are long: at a power of two, they would share few places of a cache

CLONES void to_int8(const float* x, std::size_t count, float step, std::int8_t* digits) {
  for (std::size_t at = 0; at < count; ++at) {
    const float rounded = std::nearbyint(x[at] / step), low = rounded < -128.0f ? -128.0f : rounded;
    digits[at] = static_cast<std::int8_t>(static_cast<std::int32_t>(low > 127.0f ? 127.0f : low));
  }
}

CLONES void to_digits(const float* x, std::size_t count, float step, std::int8_t* high, std::int8_t* low) {
  for (std::size_t at = 0; at < count; ++at) {
    const auto whole = static_cast<std::int32_t>(std::nearbyint(x[at] / step));
    const auto last = static_cast<std::int8_t>(whole);
    low[at] = last;
    high[at] = static_cast<std::int8_t>((whole - last) >> 8);
  }
}

CLONES void to_digits(const float* x, std::size_t count, float step, std::int8_t* high, std::int8_t* middle, std::int8_t* low) {
  for (std::size_t at = 0; at < count; ++at) {
    const auto whole = static_cast<std::int32_t>(std::nearbyint(x[at] / step));
    const auto last = static_cast<std::int8_t>(whole);
    const std::int32_t rest = (whole - last) >> 8;
    const auto mid = static_cast<std::int8_t>(rest);
    low[at] = last;
    middle[at] = mid;
    high[at] = static_cast<std::int8_t>((rest - mid) >> 8);
  }
}

CLONES std::int32_t sum_of(const std::int8_t* values, std::size_t count) {
  std::int32_t sum = 0;
  for (std::size_t at = 0; at < count; ++at) sum += values[at];
  return sum;
}

// Sixteen numbers, in as many registers as the processor needs for them.
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Integers = std::int32_t __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

template <typename Vector, typename Number>
inline __attribute__((always_inline)) Vector load(const Number* from) {
  Vector made;
  std::memcpy(&made, from, sizeof(made));
  return made;
}

inline __attribute__((always_inline)) void store(float* to, Floats values) { std::memcpy(to, &values, sizeof(values)); }

// The largest magnitude; NaN where there is one, or where there is an infinity.
CLONES float range_of(const float* x, std::size_t count) {
  Floats largest = {}, odd = {};
  std::size_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    const Floats value = load<Floats>(x + at), size = value < 0.0f ? -value : value;
    largest = largest > size ? largest : size;
    odd += size * 0.0f;
  }
  float all = 0, none = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    all = std::max(all, largest[lane]);
    none += odd[lane];
  }
  for (; at < count; ++at) {
    all = std::max(all, std::fabs(x[at]));
    none += x[at] * 0.0f;
  }
  return all + none;
}

// y += scale · (what the digits' sums amount to), for each token of one block. Of `sums`, what the panel's values have too much of is taken away.
template <std::size_t Digits>
inline __attribute__((always_inline)) void gather(const std::int32_t* sums, const std::int32_t* given, std::size_t blocks, std::int32_t middle, const float* scales,
                                                  std::size_t tokens, float* y, std::size_t stride) {
  const Floats scale = load<Floats>(scales);
  for (std::size_t token = 0; token < tokens; ++token, sums += Digits * kLanes, given += Digits * blocks, y += stride) {
    Floats value = {};
    for (std::size_t digit = 0; digit < Digits; ++digit)
      value = value * 256.0f + __builtin_convertvector(load<Integers>(sums + digit * kLanes) - middle * given[digit * blocks], Floats);
    store(y, load<Floats>(y) + value * scale);
  }
}

using Gather = void (*)(const std::int32_t* sums, const std::int32_t* given, std::size_t blocks, std::int32_t middle, const float* scales, std::size_t tokens, float* y,
                        std::size_t stride);

CLONES void gather1(const std::int32_t* sums, const std::int32_t* given, std::size_t blocks, std::int32_t middle, const float* scales, std::size_t tokens, float* y,
                    std::size_t stride) {
  gather<1>(sums, given, blocks, middle, scales, tokens, y, stride);
}

CLONES void gather2(const std::int32_t* sums, const std::int32_t* given, std::size_t blocks, std::int32_t middle, const float* scales, std::size_t tokens, float* y,
                    std::size_t stride) {
  gather<2>(sums, given, blocks, middle, scales, tokens, y, stride);
}

CLONES void gather3(const std::int32_t* sums, const std::int32_t* given, std::size_t blocks, std::int32_t middle, const float* scales, std::size_t tokens, float* y,
                    std::size_t stride) {
  gather<3>(sums, given, blocks, middle, scales, tokens, y, stride);
}

const Gather kGathers[] = {nullptr, gather1, gather2, gather3};

CLONES void scale_by(const float* scales, std::size_t tokens, float* y, std::size_t stride) {
  for (std::size_t token = 0; token < tokens; ++token, y += stride) store(y, load<Floats>(y) * scales[token]);
}

// e^x for x ≤ 88: after the range is reduced by ln 2 in two parts, a polynomial (coefficients of Cephes' expf), relative error below 2^-22.
inline __attribute__((always_inline)) Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
  const Floats rounder = Floats{} + 12582912.0f;  // 1.5 · 2^23: adding it rounds to whole numbers
  const Floats whole = (x * 1.44269504088896341f + rounder) - rounder;
  const Floats r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers power = (__builtin_convertvector(whole, Integers) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return p * scale;
}

}  // namespace

void Rows::resize(std::size_t tokens_, std::size_t digits_, std::size_t inputs_, std::size_t block_) {
  tokens = tokens_;
  digits = digits_;
  inputs = inputs_;
  block = block_;
  if (digits == 0) {
    floats.resize(tokens * wide());
    if (inputs < wide())
      for (std::size_t token = 0; token < tokens; ++token) floats[token * wide() + inputs] = 0.0f;
    return;
  }
  depth = filled(inputs, kTile);
  stride = depth + kLine;
  values.resize(filled(rows(), kRows) * stride);
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(rows() * stride), values.end(), 0);
  for (std::size_t row = 0; inputs < depth && row < rows(); ++row) std::fill_n(values.data() + row * stride + inputs, depth - inputs, 0);
  sums.resize(rows() * blocks());
  scales.resize(tokens);
}

void Rows::copy(std::size_t place, const Rows& from, std::size_t token) {
  if (digits == 0) {
    std::memcpy(floats.data() + place * wide(), from.floats.data() + token * wide(), inputs * sizeof(float));
    return;
  }
  std::memcpy(values.data() + place * digits * stride, from.values.data() + token * digits * stride, digits * stride);
  std::memcpy(sums.data() + place * digits * blocks(), from.sums.data() + token * digits * blocks(), digits * blocks() * sizeof(std::int32_t));
  scales[place] = from.scales[token];
}

void round(const float* x, Rounding rounding, float fixed, Rows& rows, std::size_t place) {
  if (rounding == Rounding::none) {
    std::memcpy(rows.floats.data() + place * rows.wide(), x, rows.inputs * sizeof(float));
    return;
  }
  std::int8_t* values = rows.values.data() + place * rows.digits * rows.stride;
  const float range = range_of(x, rows.inputs);
  float step = fixed;
  switch (rounding) {
    case Rounding::fixed:
      break;
    case Rounding::row:
      step = std::max(range, kLeast) / kMost8;
      break;
    case Rounding::fine:
      step = std::max(range, kTiny) / kMost16;
      break;
    case Rounding::none:
    case Rounding::exact:
      step = std::max(range, kTiny) / kMost24;
  }
  if (!(range < std::numeric_limits<float>::infinity())) step = std::numeric_limits<float>::quiet_NaN();
  rows.scales[place] = step;
  std::int32_t* sums = rows.sums.data() + place * rows.digits * rows.blocks();
  if (std::isnan(step))
    std::fill_n(values, rows.digits * rows.stride, 0);
  else if (rounding == Rounding::exact)
    to_digits(x, rows.inputs, step, values, values + rows.stride, values + 2 * rows.stride);
  else if (rounding == Rounding::fine)
    to_digits(x, rows.inputs, step, values, values + rows.stride);
  else
    to_int8(x, rows.inputs, step, values);
  for (std::size_t digit = 0; digit < rows.digits; ++digit)
    for (std::size_t block = 0; block < rows.blocks(); ++block) *sums++ = sum_of(values + digit * rows.stride + block * rows.block, rows.block);
}

// A panel's scales of bfloat16 as float32.
static const float* widened(const std::uint16_t* halves, float* wide) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::uint32_t bits = static_cast<std::uint32_t>(halves[lane]) << 16;
    std::memcpy(wide + lane, &bits, sizeof(bits));
  }
  return wide;
}

void multiply(const Packed& matrix, std::size_t panel, const Rows& rows, float* y, std::size_t stride, Sums& room) {
  if (matrix.floating()) {
    const Kind& kind = kind_for(rows.tokens, rows.wide());
    return kind.floats(matrix.bits)({matrix.panel(panel), rows.floats.data(), rows.wide(), rows.tokens, rows.wide(), y, stride});
  }
  const Kind& kind = kind_for(rows.rows(), matrix.block % 32 == 0 ? matrix.block : rows.depth);
  const std::size_t blocks = matrix.blocks(), depth = blocks == 1 ? rows.depth : matrix.block;
  const auto product = matrix.bits == 4 ? kind.int4 : kind.int8;
  float wide[kLanes];
  room.resize(filled(rows.rows(), kRows) * kLanes);
  for (std::size_t token = 0; token < rows.tokens; ++token) std::fill_n(y + token * stride, kLanes, 0.0f);
  kind.begin(depth);
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::size_t first = block * matrix.block;
    product({matrix.panel(panel) + first * kLanes * static_cast<std::size_t>(matrix.bits) / 8, rows.values.data() + first, rows.stride, rows.rows(), depth, room.data()});
    const std::size_t at = matrix.scales_before(panel, block);
    const float* scales = matrix.scales ? matrix.scales + at : widened(matrix.short_scales + at, wide);
    kGathers[rows.digits](room.data(), rows.sums.data() + block, blocks, matrix.middle(), scales, rows.tokens, y, stride);
  }
  kind.end();
  scale_by(rows.scales.data(), rows.tokens, y, stride);
}

CLONES void swiglu(const float* gate, const float* up, float* h) {
  const Floats value = load<Floats>(gate);
  store(h, value / (1.0f + exponential(-value)) * load<Floats>(up));
}

CLONES void normed(const float* x, const float* weight, std::size_t count, float epsilon, float* y) {
  Floats squares = {};
  for (std::size_t at = 0; at < count; at += kLanes) squares += load<Floats>(x + at) * load<Floats>(x + at);
  float sum = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum += squares[lane];
  const float size = std::sqrt(sum / static_cast<float>(count) + epsilon);
  for (std::size_t at = 0; at < count; at += kLanes) store(y + at, load<Floats>(x + at) / size * load<Floats>(weight + at));
}

CLONES float largest(const float* x, std::size_t count) {
  float most = -std::numeric_limits<float>::infinity();
  Floats mosts = Floats{} + most;
  std::size_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    const Floats value = load<Floats>(x + at);
    mosts = value > mosts ? value : mosts;
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) most = mosts[lane] > most ? mosts[lane] : most;
  for (; at < count; ++at) most = x[at] > most ? x[at] : most;
  return most;
}

CLONES float soften(float* x, std::size_t count, float most) {
  Floats sums = {};
  for (std::size_t at = 0; at < count; at += kLanes) {
    Floats value = exponential(load<Floats>(x + at) - most);
    for (std::size_t lane = count - at; lane < kLanes; ++lane) value[lane] = 0.0f;
    sums += value;
    store(x + at, value);
  }
  float sum = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

CLONES float exponential_of(float x) { return exponential(Floats{} + x)[0]; }

CLONES void blend(float* y, float factor, const float* x, std::size_t count) {
  for (std::size_t at = 0; at < count; at += kLanes) store(y + at, load<Floats>(y + at) * factor + load<Floats>(x + at));
}

CLONES void add(float* y, const float* x, float weight, std::size_t count) {
  for (std::size_t at = 0; at < count; at += kLanes) store(y + at, load<Floats>(y + at) + weight * load<Floats>(x + at));
}

}  // namespace moetrt::ops
