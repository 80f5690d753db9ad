// By AVX2 and FMA: this file alone is compiled for it. Bytes are widened first, since the instruction that multiplies bytes saturates.
#include "products.hpp"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "packed.hpp"
#include "products_float.hpp"

namespace moetrt::ops {
namespace {

constexpr std::size_t kAtOnce = 3;    // rows whose sums are held in registers
constexpr std::size_t kAhead = 4096;  // bytes that are asked for before they are needed
constexpr int kQuarters = 4;          // of a panel: four outputs by four inputs fill a register

__m256i broadcast(const std::int8_t* values) {
  std::int32_t four;
  std::memcpy(&four, values, sizeof(four));
  return _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
}

// One group of inputs. Sums of an output are two, of two inputs each.
template <int Rows>
void add(__m256i (&sums)[Rows][kQuarters], int quarter, __m128i weights, const std::int8_t* values, std::size_t stride) {
  const __m256i wide = _mm256_cvtepu8_epi16(weights);
#pragma GCC unroll 3
  for (int row = 0; row < Rows; ++row)
    sums[row][quarter] = _mm256_add_epi32(sums[row][quarter], _mm256_madd_epi16(wide, broadcast(values + static_cast<std::size_t>(row) * stride)));
}

template <int Rows, int Bits>
void multiply(const Product& product, std::size_t first) {
  __m256i sums[Rows][kQuarters];
  for (auto& row : sums)
    for (__m256i& sum : row) sum = _mm256_setzero_si256();
  const std::uint8_t* panel = product.panel;
  const std::int8_t* values = product.values + first * product.stride;
  const __m128i low = _mm_set1_epi8(15);
  constexpr std::size_t kStep = Bits == 4 ? 2 * kGroup : kGroup;
  for (std::size_t input = 0; input < product.inputs; input += kStep, panel += kLanes * kGroup, values += kStep) {
    _mm_prefetch(reinterpret_cast<const char*>(panel) + kAhead, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel) + quarter);
      if constexpr (Bits == 8) {
        add<Rows>(sums, quarter, bytes, values, product.stride);
      } else {
        add<Rows>(sums, quarter, _mm_and_si128(bytes, low), values, product.stride);
        add<Rows>(sums, quarter, _mm_and_si128(_mm_srli_epi16(bytes, 4), low), values + kGroup, product.stride);
      }
    }
  }
  for (int row = 0; row < Rows; ++row)
    for (int half = 0; half < 2; ++half) {
      const __m256i pairs = _mm256_hadd_epi32(sums[row][2 * half], sums[row][2 * half + 1]);
      const __m256i ordered = _mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(3, 1, 2, 0));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(product.sums + (first + static_cast<std::size_t>(row)) * kLanes) + half, ordered);
    }
}

template <int Bits>
void all(const Product& product) {
  static constexpr void (*kSome[])(const Product&, std::size_t) = {multiply<1, Bits>, multiply<2, Bits>, multiply<3, Bits>};
  for (std::size_t first = 0; first < product.rows; first += kAtOnce) kSome[std::min(product.rows - first, kAtOnce) - 1](product, first);
}

struct Halves {
  static constexpr std::size_t kAtOnce = 3, kTile = 2;
  struct Vector {
    __m256 low, high;
  };
  static Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + kLanes / 2)}; }
  static Vector load_some(const float* from, std::size_t count) {
    float made[kLanes] = {};
    std::memcpy(made, from, count * sizeof(float));
    return load(made);
  }
  static void load_bfloat16(const std::uint8_t* from, Vector& here, Vector& next) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + 1);
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
    here = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    next = {_mm256_castsi256_ps(_mm256_and_si256(low, odd)), _mm256_castsi256_ps(_mm256_and_si256(high, odd))};
  }
  static Vector add_product(Vector weights, float value, Vector sums) {
    const __m256 all = _mm256_set1_ps(value);
    return {_mm256_fmadd_ps(weights.low, all, sums.low), _mm256_fmadd_ps(weights.high, all, sums.high)};
  }
  static Vector add_products(Vector one, Vector other, Vector sums) { return {_mm256_fmadd_ps(one.low, other.low, sums.low), _mm256_fmadd_ps(one.high, other.high, sums.high)}; }
  static float sum(Vector values) {
    const __m256 eight = _mm256_add_ps(values.low, values.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Vector add(Vector one, Vector other) { return {_mm256_add_ps(one.low, other.low), _mm256_add_ps(one.high, other.high)}; }
  static void store(float* to, Vector values) {
    _mm256_storeu_ps(to, values.low);
    _mm256_storeu_ps(to + kLanes / 2, values.high);
  }
};

}  // namespace

const Kind* avx2() {
  static const Kind kind{"avx2", idle, all<8>, all<4>, multiply_rows<Halves, 16>, multiply_rows<Halves, 32>, dot_all<Halves>, idle};
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kind : nullptr;
}

}  // namespace moetrt::ops
#else
namespace moetrt::ops {
const Kind* avx2() { return nullptr; }
}  // namespace moetrt::ops
#endif
