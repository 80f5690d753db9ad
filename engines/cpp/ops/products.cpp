#include "products.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "moetrt/error.hpp"
#include "packed.hpp"
#include "products_float.hpp"

namespace moetrt::ops {
namespace {

constexpr std::size_t kTiled = 12;  // rows from which tiles are worth their filling

// One group of inputs for all outputs of a panel.
void add(std::int32_t* sums, const std::uint8_t* weights, const std::int8_t* values, int shift, int mask) {
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    for (std::size_t input = 0; input < kGroup; ++input) sums[lane] += values[input] * ((weights[lane * kGroup + input] >> shift) & mask);
}

template <int Bits>
void multiply(const Product& product) {
  for (std::size_t row = 0; row < product.rows; ++row) {
    std::int32_t sums[kLanes] = {};
    const std::int8_t* values = product.values + row * product.stride;
    for (std::size_t group = 0; group < product.inputs / kGroup; ++group) {
      const std::uint8_t* weights = product.panel + (Bits == 4 ? group / 2 : group) * kLanes * kGroup;
      add(sums, weights, values + group * kGroup, Bits == 4 && group % 2 ? 4 : 0, Bits == 4 ? 15 : 255);
    }
    std::memcpy(product.sums + row * kLanes, sums, sizeof(sums));
  }
}

struct OneByOne {
  static constexpr std::size_t kAtOnce = 1, kTile = 1;
  struct Vector {
    float lanes[kLanes];
  };
  static Vector zero() { return {}; }
  static Vector load(const float* from) {
    Vector made;
    std::memcpy(made.lanes, from, sizeof(made.lanes));
    return made;
  }
  static Vector load_some(const float* from, std::size_t count) {
    Vector made = {};
    std::memcpy(made.lanes, from, count * sizeof(float));
    return made;
  }
  static void load_bfloat16(const std::uint8_t* from, Vector& here, Vector& next) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      std::uint32_t both;
      std::memcpy(&both, from + lane * sizeof(both), sizeof(both));
      const std::uint32_t low = both << 16, high = both & 0xffff0000U;
      std::memcpy(&here.lanes[lane], &low, sizeof(low));
      std::memcpy(&next.lanes[lane], &high, sizeof(high));
    }
  }
  static Vector add_product(const Vector& weights, float value, Vector sums) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums.lanes[lane] = std::fma(weights.lanes[lane], value, sums.lanes[lane]);
    return sums;
  }
  static Vector add_products(const Vector& one, const Vector& other, Vector sums) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums.lanes[lane] = std::fma(one.lanes[lane], other.lanes[lane], sums.lanes[lane]);
    return sums;
  }
  static float sum(Vector values) {
    for (std::size_t half = kLanes / 2; half; half /= 2)
      for (std::size_t lane = 0; lane < half; ++lane) values.lanes[lane] += values.lanes[lane + half];
    return values.lanes[0];
  }
  static Vector add(Vector one, const Vector& other) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) one.lanes[lane] += other.lanes[lane];
    return one;
  }
  static void store(float* to, const Vector& values) { std::memcpy(to, values.lanes, sizeof(values.lanes)); }
};

// Those that are here, the slowest first, up to the one of this name.
std::vector<const Kind*> up_to(const std::string& name) {
  const std::pair<const char*, const Kind*> all[] = {{"plain", &plain()}, {"avx2", avx2()}, {"vnni", vnni()}, {"amx", amx()}};
  std::vector<const Kind*> found;
  for (const auto& [called, kind] : all) {
    if (kind) found.push_back(kind);
    if (name == called) return found;
  }
  throw Error("there is no way to multiply called '" + name + "'.", "MOETRT_ISA may be plain, avx2, vnni or amx.");
}

std::vector<const Kind*>& taken() {
  static std::vector<const Kind*> found = [] {
    const char* const most = std::getenv("MOETRT_ISA");
    return up_to(most ? most : "amx");
  }();
  return found;
}

}  // namespace

const Kind& plain() {
  static const Kind kind{"plain", idle, multiply<8>, multiply<4>, multiply_rows<OneByOne, 16>, multiply_rows<OneByOne, 32>, dot_all<OneByOne>, idle};
  return kind;
}

const Kind& kind_for(std::size_t rows, std::size_t block) {
  const std::vector<const Kind*>& found = taken();
  const bool tiled = found.back() == amx();
  return *found[found.size() - (tiled && (rows < kTiled || block % 32 != 0) ? 2 : 1)];
}

void hold_to(const std::string& name) { taken() = up_to(name); }

std::vector<std::string> kinds() {
  std::vector<std::string> names;
  for (const Kind* kind : taken()) names.emplace_back(kind->name);
  return names;
}

}  // namespace moetrt::ops
