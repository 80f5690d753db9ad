#include "products.hpp"

#include <cstdlib>
#include <cstring>

#include "packed.hpp"

namespace moetrt::ops {
namespace {

constexpr std::size_t kTiled = 12;  // rows from which tiles are worth their filling

void nothing(std::size_t /*inputs*/) {}
void nothing() {}

template <int Bits>
void multiply(const Product& product) {
  for (std::size_t row = 0; row < product.rows; ++row) {
    std::int32_t sums[kLanes] = {};
    const std::int8_t* values = product.values + row * product.stride;
    for (std::size_t input = 0; input < product.inputs; ++input) {
      const std::size_t group = input / kGroup, place = input % kGroup;
      const std::uint8_t* weights = product.panel + (Bits == 4 ? group / 2 : group) * kLanes * kGroup + place;
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const int weight = weights[lane * kGroup];
        sums[lane] += values[input] * (Bits == 8 ? weight : group % 2 ? weight >> 4 : weight & 15);
      }
    }
    std::memcpy(product.sums + row * kLanes, sums, sizeof(sums));
  }
}

// The environment may hold back what the processor has: MOETRT_ISA=plain or vnni, for tests and for machines that are to agree on speed.
bool allowed(const char* name) {
  static const char* const most = std::getenv("MOETRT_ISA");
  if (!most) return true;
  return std::strcmp(most, name) == 0 || std::strcmp(most, "amx") == 0;
}

}  // namespace

const Kind& plain() {
  static const Kind kind{"plain", nothing, multiply<8>, multiply<4>, nothing};
  return kind;
}

const Kind& kind_for(std::size_t rows, std::size_t block) {
  static const Kind* const few = allowed("vnni") ? vnni() : nullptr;
  static const Kind* const many = allowed("amx") ? amx() : nullptr;
  if (many && rows >= kTiled && block % 32 == 0) return *many;
  return few ? *few : plain();
}

}  // namespace moetrt::ops
