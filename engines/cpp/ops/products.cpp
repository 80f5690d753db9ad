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

struct Taken {
  const Kind* few = nullptr;   // null: plain
  const Kind* many = nullptr;  // null: as for few
};

Taken up_to(const std::string& name) { return name == "plain" ? Taken{} : Taken{vnni(), name == "vnni" ? nullptr : amx()}; }

Taken& taken() {
  static Taken found = [] {
    const char* const most = std::getenv("MOETRT_ISA");
    return up_to(most ? most : "amx");
  }();
  return found;
}

}  // namespace

const Kind& plain() {
  static const Kind kind{"plain", nothing, multiply<8>, multiply<4>, nothing};
  return kind;
}

const Kind& kind_for(std::size_t rows, std::size_t block) {
  const Taken& found = taken();
  if (found.many && rows >= kTiled && block % 32 == 0) return *found.many;
  return found.few ? *found.few : plain();
}

void hold_to(const std::string& name) { taken() = up_to(name); }

std::string kinds() {
  const Taken& found = taken();
  return std::string(plain().name) + (found.few ? std::string(" ") + found.few->name : "") + (found.many ? std::string(" ") + found.many->name : "");
}

}  // namespace moetrt::ops
