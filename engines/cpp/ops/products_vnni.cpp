// By AVX-512 VNNI: this file alone is compiled for it.
#include "products.hpp"

#if defined(__AVX512VNNI__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of registers that its own header leaves undefined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#include "packed.hpp"
#include "products_float.hpp"

namespace moetrt::ops {
namespace {

constexpr std::size_t kAtOnce = 12;   // rows whose sums are held in registers
constexpr std::size_t kAhead = 4096;  // bytes that are asked for before they are needed

__m512i broadcast(const std::int8_t* values) {
  std::int32_t four;
  std::memcpy(&four, values, sizeof(four));
  return _mm512_set1_epi32(four);
}

template <int Rows, int Bits>
void multiply(const Product& product, std::size_t first) {
  __m512i sums[Rows];
  for (int row = 0; row < Rows; ++row) sums[row] = _mm512_setzero_si512();
  const std::uint8_t* panel = product.panel;
  const std::int8_t* values = product.values + first * product.stride;
  const __m512i low = _mm512_set1_epi8(15);
  constexpr std::size_t kStep = Bits == 4 ? 2 * kGroup : kGroup;
  for (std::size_t input = 0; input < product.inputs; input += kStep, panel += kLanes * kGroup) {
    _mm_prefetch(reinterpret_cast<const char*>(panel) + kAhead, _MM_HINT_T0);
    const __m512i weights = _mm512_loadu_si512(panel);
    if constexpr (Bits == 8) {
#pragma GCC unroll 12
      for (int row = 0; row < Rows; ++row) sums[row] = _mm512_dpbusd_epi32(sums[row], weights, broadcast(values + row * product.stride + input));
    } else {
      const __m512i here = _mm512_and_si512(weights, low), next = _mm512_and_si512(_mm512_srli_epi16(weights, 4), low);
#pragma GCC unroll 12
      for (int row = 0; row < Rows; ++row) {
        const std::int8_t* at = values + row * product.stride + input;
        sums[row] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[row], here, broadcast(at)), next, broadcast(at + kGroup));
      }
    }
  }
  for (int row = 0; row < Rows; ++row) _mm512_storeu_si512(product.sums + (first + row) * kLanes, sums[row]);
}

template <int Bits>
void all(const Product& product) {
  using Some = void (*)(const Product&, std::size_t);
  static constexpr Some kSome[] = {nullptr,           multiply<1, Bits>, multiply<2, Bits>, multiply<3, Bits>,  multiply<4, Bits>,  multiply<5, Bits>, multiply<6, Bits>,
                                   multiply<7, Bits>, multiply<8, Bits>, multiply<9, Bits>, multiply<10, Bits>, multiply<11, Bits>, multiply<12, Bits>};
  for (std::size_t first = 0; first < product.rows; first += kAtOnce) kSome[product.rows - first < kAtOnce ? product.rows - first : kAtOnce](product, first);
}

struct Whole {
  static constexpr std::size_t kAtOnce = 12, kTile = 4;
  using Vector = __m512;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector load_some(const float* from, std::size_t count) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), from); }
  static void load_bfloat16(const std::uint8_t* from, Vector& here, Vector& next) {
    const __m512i both = _mm512_loadu_si512(from);
    here = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    next = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static Vector add_product(Vector weights, float value, Vector sums) { return _mm512_fmadd_ps(weights, _mm512_set1_ps(value), sums); }
  static Vector add_products(Vector one, Vector other, Vector sums) { return _mm512_fmadd_ps(one, other, sums); }
  static float sum(Vector values) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(values), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(values), 1)));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Vector add(Vector one, Vector other) { return _mm512_add_ps(one, other); }
  static void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
};

}  // namespace

const Kind* vnni() {
  static const Kind kind{"vnni", idle, all<8>, all<4>, multiply_rows<Whole, 16>, multiply_rows<Whole, 32>, dot_all<Whole>, idle};
  static const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return here ? &kind : nullptr;
}

}  // namespace moetrt::ops
#else
namespace moetrt::ops {
const Kind* vnni() { return nullptr; }
}  // namespace moetrt::ops
#endif
