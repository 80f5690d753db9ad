// By the tiles of AMX: this file alone is compiled for them.
#include "products.hpp"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "packed.hpp"

namespace moetrt::ops {
namespace {

constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA: a process asks Linux for the registers once

// What a thread's tiles are: sums in 0 to 3, rows in 4 and 5, a panel's part in 6 and 7.
struct alignas(64) Shapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Instructions on tiles do not tell the compiler what memory they read: what lies at `memory` is written by then.
void written(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

constexpr int kLine = kLanes * kGroup;  // bytes from row to row of a tile of sums, or of a panel
constexpr std::size_t kAhead = 4096;    // bytes of a panel that are asked for before they are needed

thread_local std::size_t depth = 0;  // inputs of a tile: 64, or 32 where a block is no multiple of it

void begin(std::size_t inputs) {
  depth = inputs % kTile == 0 ? kTile : kTile / 2;
  Shapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.bytes[tile] = static_cast<std::uint16_t>(tile == 4 || tile == 5 ? depth : 64);
    shapes.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? kRows : depth / kGroup);
  }
  written(&shapes);
  _tile_loadconfig(&shapes);
}

void end() { _tile_release(); }

// `depth` inputs of a panel of 4 bits as the tile that 8 bits would be.
const std::uint8_t* widened(const std::uint8_t* packed, std::uint8_t* room) {
  const __m512i low = _mm512_set1_epi8(15);
  for (std::size_t group = 0; group < depth / kGroup; group += 2, packed += kLanes * kGroup, room += 2 * kLanes * kGroup) {
    const __m512i both = _mm512_loadu_si512(packed);
    _mm512_storeu_si512(room, _mm512_and_si512(both, low));
    _mm512_storeu_si512(room + kLanes * kGroup, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
  }
  written(room);
  return room - depth * kLanes;
}

template <int Bits>
const std::uint8_t* part(const Product& product, std::size_t input, std::uint8_t* room) {
  const std::uint8_t* packed = product.panel + input * kLanes * Bits / 8;
  for (std::size_t line = 0; line < depth * kLanes * Bits / 8; line += kLine) _mm_prefetch(reinterpret_cast<const char*>(packed) + kAhead + line, _MM_HINT_T0);
  return Bits == 8 ? packed : widened(packed, room);
}

// One to four groups of sixteen rows, from `first` on. Registers have numbers that the compiler must know.
template <int Groups, int Bits>
void some(const Product& product, std::size_t first) {
  alignas(64) std::uint8_t room[kTile * kLanes];
  const auto stride = static_cast<long>(product.stride);
  const std::size_t next = kRows * product.stride;
  const std::int8_t* values = product.values + first * product.stride;
  _tile_zero(0);
  if constexpr (Groups > 1) _tile_zero(1);
  if constexpr (Groups > 2) _tile_zero(2);
  if constexpr (Groups > 3) _tile_zero(3);
  for (std::size_t input = 0; input < product.inputs; input += depth, values += depth) {
    _tile_loadd(6, part<Bits>(product, input, room), kLine);
    _tile_loadd(4, values, stride);
    _tile_dpbsud(0, 4, 6);
    if constexpr (Groups > 1) {
      _tile_loadd(5, values + next, stride);
      _tile_dpbsud(1, 5, 6);
    }
    if constexpr (Groups > 2) {
      _tile_loadd(4, values + 2 * next, stride);
      _tile_dpbsud(2, 4, 6);
    }
    if constexpr (Groups > 3) {
      _tile_loadd(5, values + 3 * next, stride);
      _tile_dpbsud(3, 5, 6);
    }
  }
  std::int32_t* sums = product.sums + first * kLanes;
  _tile_stored(0, sums, kLine);
  if constexpr (Groups > 1) _tile_stored(1, sums + kRows * kLanes, kLine);
  if constexpr (Groups > 2) _tile_stored(2, sums + 2 * kRows * kLanes, kLine);
  if constexpr (Groups > 3) _tile_stored(3, sums + 3 * kRows * kLanes, kLine);
}

template <int Bits>
void multiply(const Product& product) {
  static constexpr void (*kSome[])(const Product&, std::size_t) = {some<1, Bits>, some<2, Bits>, some<3, Bits>, some<4, Bits>};
  const std::size_t groups = filled(product.rows, kRows) / kRows;
  for (std::size_t group = 0; group < groups; group += 4) kSome[std::min<std::size_t>(groups - group, 4) - 1](product, group * kRows);
}

// The processor has tiles of int8, and Linux lets this process use them.
bool available() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1U << 24, kInt8 = 1U << 25;
  return (d & kTiles) && (d & kInt8) && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}

}  // namespace

const Kind* amx() {
  static const bool here = vnni() && available();
  if (!here) return nullptr;
  // Tiles round sums of floats in an order of their own: those stay with the registers.
  static const Kind kind{"amx", begin, multiply<8>, multiply<4>, vnni()->bfloat16, vnni()->float32, vnni()->dots, end};
  return &kind;
}

}  // namespace moetrt::ops
#else
namespace moetrt::ops {
const Kind* amx() { return nullptr; }
}  // namespace moetrt::ops
#endif
