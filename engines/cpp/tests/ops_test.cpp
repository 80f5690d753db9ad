// The kernels for CPUs against plain sums in double precision, on arrays of exact size, by every kind of product that this processor has.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "experts.hpp"
#include "linear.hpp"
#include "ops_helpers.hpp"
#include "products.hpp"

namespace {

using namespace moetrt::ops;

// A matrix of `count` experts: as the kernels read it, and as numbers.
struct Matrix {
  Matrix(std::size_t inputs, std::size_t outputs, std::size_t block, int bits, std::size_t count, unsigned seed, std::size_t apart = 1) {
    packed = {nullptr, nullptr, inputs, filled(outputs, kLanes), block ? block : inputs, bits, apart};
    std::mt19937 random(seed);
    const int most = bits == 4 ? 7 : 127;
    values.assign(count * packed.bytes(), packed.floating() ? 0 : bits == 4 ? 0x88 : 0x80);
    scales.assign(count * packed.scale_count(), 0.0f);
    wide.resize(count * inputs * packed.outputs);
    for (std::size_t expert = 0; expert < count; ++expert)
      for (std::size_t output = 0; output < outputs; ++output)
        for (std::size_t input = 0; input < inputs; ++input) {
          if (packed.floating()) {
            std::uint8_t* const place = values.data() + (expert * packed.panels() + output / kLanes) * apart * packed.panel_bytes();
            wide[(expert * packed.outputs + output) * inputs + input] =
                static_cast<double>(put(place, bits, input, output % kLanes, std::normal_distribution<float>(0.0f, 0.1f)(random)));
            continue;
          }
          const int value = std::uniform_int_distribution<int>(-most - 1, most)(random);
          const std::size_t panel = expert * packed.panels() * apart + output / kLanes * apart, lane = output % kLanes, group = input / kGroup;
          float& scale = scales[(panel * packed.blocks() + input / packed.block) * kLanes + lane];
          if (scale == 0.0f) scale = std::uniform_real_distribution<float>(0.001f, 0.01f)(random);
          std::uint8_t& byte = values[panel * packed.panel_bytes() + (bits == 4 ? group / 2 : group) * kLanes * kGroup + lane * kGroup + input % kGroup];
          const auto moved = static_cast<std::uint8_t>(value + packed.middle());
          byte = bits == 8 ? moved : static_cast<std::uint8_t>(group % 2 ? (byte & 0x0f) | (moved << 4) : (byte & 0xf0) | moved);
          wide[(expert * packed.outputs + output) * inputs + input] = static_cast<double>(value) * static_cast<double>(scale);
        }
    packed.values = values.data();
    packed.scales = scales.data();
  }

  [[nodiscard]] double of(const std::vector<double>& row, std::size_t output, std::size_t expert = 0) const {
    double sum = 0;
    for (std::size_t input = 0; input < packed.inputs; ++input) sum += row[input] * wide[(expert * packed.outputs + output) * packed.inputs + input];
    return sum;
  }

  Packed packed;
  std::vector<std::uint8_t> values;
  std::vector<float> scales;
  std::vector<double> wide;
};

std::vector<float> product(const Matrix& matrix, const std::vector<float>& x, std::size_t tokens, std::size_t outputs, Rounding rounding) {
  std::vector<float> y(tokens * outputs, -1.0f);
  linear(matrix.packed, rounding, 0.02f, x.data(), tokens, y.data(), outputs, kTwo);
  return y;
}

struct Sizes {
  std::size_t inputs, outputs, block, tokens;
  int bits;
};

const Sizes kSizes[] = {{256, 96, 0, 1, 8},  {256, 96, 0, 7, 8},  {96, 24, 0, 33, 8},    {100, 5, 0, 5, 8},  {256, 48, 128, 40, 8},
                        {96, 16, 32, 13, 8}, {160, 16, 32, 1, 4}, {256, 33, 128, 70, 4}, {64, 16, 0, 530, 8}};

const Sizes kFloats[] = {{256, 96, 0, 1, 16}, {101, 24, 0, 33, 16}, {64, 5, 0, 530, 16}, {256, 96, 0, 1, 32}, {101, 24, 0, 33, 32}, {64, 5, 0, 530, 32}};

// As `product` gives it, in double precision.
std::vector<double> exact_product(const Matrix& matrix, const std::vector<float>& x, const Sizes& sizes) {
  std::vector<double> wanted;
  for (std::size_t token = 0; token < sizes.tokens; ++token) {
    const std::vector<double> row(x.begin() + static_cast<std::ptrdiff_t>(token * sizes.inputs), x.begin() + static_cast<std::ptrdiff_t>((token + 1) * sizes.inputs));
    for (std::size_t output = 0; output < sizes.outputs; ++output) wanted.push_back(matrix.of(row, output));
  }
  return wanted;
}

TEST_CASE("products are exact in three digits, and the same to the bit by every kind") {
  for (const Sizes& sizes : kSizes) {
    const Matrix matrix(sizes.inputs, sizes.outputs, sizes.block, sizes.bits, 1, 3);
    const std::vector<float> x = numbers(sizes.tokens * sizes.inputs, 4);
    const std::vector<double> wanted = exact_product(matrix, x, sizes);
    for (const Rounding rounding : {Rounding::exact, Rounding::fine, Rounding::row}) {
      hold_to("plain");
      const std::vector<float> first = product(matrix, x, sizes.tokens, sizes.outputs, rounding);
      CHECK(distance(first, wanted) < (rounding == Rounding::exact ? 1e-6 : rounding == Rounding::fine ? 1e-4 : 2e-2));
      for (const std::string& kind : all_kinds()) {
        hold_to(kind);
        CHECK(product(matrix, x, sizes.tokens, sizes.outputs, rounding) == first);
      }
    }
  }
}

TEST_CASE("scales of bfloat16 are read as float32's are") {
  for (const int bits : {8, 4}) {
    Matrix matrix(128, 40, 32, bits, 1, 13);
    std::vector<std::uint16_t> halves;
    for (float& scale : matrix.scales) {
      std::uint32_t word;
      std::memcpy(&word, &scale, sizeof(word));
      halves.push_back(static_cast<std::uint16_t>(word >> 16));
      word &= 0xffff0000U;
      std::memcpy(&scale, &word, sizeof(word));
    }
    const std::vector<float> x = numbers(5 * 128, 14), wanted = product(matrix, x, 5, 40, Rounding::exact);
    matrix.packed.scales = nullptr;
    matrix.packed.short_scales = halves.data();
    CHECK(product(matrix, x, 5, 40, Rounding::exact) == wanted);
  }
}

TEST_CASE("products of floats are the same to the bit by every kind, and for a row alone as among others") {
  for (const Sizes& sizes : kFloats) {
    const Matrix matrix(sizes.inputs, sizes.outputs, 0, sizes.bits, 1, 3);
    const std::vector<float> x = numbers(sizes.tokens * sizes.inputs, 4);
    hold_to("plain");
    const std::vector<float> first = product(matrix, x, sizes.tokens, sizes.outputs, Rounding::none);
    CHECK(distance(first, exact_product(matrix, x, sizes)) < 1e-6);
    const std::vector<float> last(x.end() - static_cast<std::ptrdiff_t>(sizes.inputs), x.end());
    for (const std::string& kind : all_kinds()) {
      hold_to(kind);
      CHECK(product(matrix, x, sizes.tokens, sizes.outputs, Rounding::none) == first);
      const std::vector<float> alone = product(matrix, last, 1, sizes.outputs, Rounding::none);
      CHECK(std::equal(alone.begin(), alone.end(), first.end() - static_cast<std::ptrdiff_t>(sizes.outputs)));
    }
  }
}

TEST_CASE("a row that is no number spoils itself alone") {
  const Matrix matrix(64, 16, 0, 8, 1, 5);
  std::vector<float> x = numbers(3 * 64, 6);
  x[64 + 9] = NAN;
  x[128 + 3] = INFINITY;
  for (const Rounding rounding : {Rounding::exact, Rounding::fine, Rounding::row, Rounding::fixed}) {
    const std::vector<float> y = product(matrix, x, 3, 16, rounding);
    for (std::size_t output = 0; output < 16; ++output) {
      CHECK(std::isfinite(y[output]));
      CHECK(std::isnan(y[16 + output]));
      CHECK(std::isnan(y[32 + output]));
    }
  }
}

TEST_CASE("a row of zeros gives zeros") {
  const Matrix matrix(64, 16, 32, 8, 1, 5);
  for (const Rounding rounding : {Rounding::exact, Rounding::fine, Rounding::row, Rounding::fixed})
    CHECK(product(matrix, std::vector<float>(64, 0.0f), 1, 16, rounding) == std::vector<float>(16, 0.0f));
}

TEST_CASE("experts add what their tokens ask for, others nothing") {
  constexpr std::size_t kHidden = 64, kWidth = 48, kCount = 4;
  for (const std::size_t tokens : {0U, 1U, 5U, 40U, 600U})
    for (const int bits : {8, 4, 16, 32}) {
      Matrix both(kHidden, kWidth, 0, bits, kCount, 7, 2), up(kHidden, kWidth, 0, bits, kCount, 8, 2);
      // The panels of ups between those of gates.
      for (std::size_t panel = 0; panel < kCount * 2 * both.packed.panels(); panel += 2) {
        std::copy_n(up.values.begin() + static_cast<std::ptrdiff_t>(panel * up.packed.panel_bytes()), up.packed.panel_bytes(),
                    both.values.begin() + static_cast<std::ptrdiff_t>((panel + 1) * both.packed.panel_bytes()));
        if (!up.scales.empty())
          std::copy_n(up.scales.begin() + static_cast<std::ptrdiff_t>(panel * kLanes), kLanes, both.scales.begin() + static_cast<std::ptrdiff_t>((panel + 1) * kLanes));
      }
      const Matrix down(kWidth, kHidden, 0, bits, kCount, 9);
      Experts made;
      made.gate = made.up = both.packed;
      made.up.values += both.packed.panel_bytes();
      if (made.up.floating())
        made.rounding = Rounding::none;
      else
        made.up.scales += kLanes;
      made.down = down.packed;
      made.count = kCount;
      made.first = 2;
      const std::vector<float> x = numbers(tokens * kHidden, 10);
      std::vector<std::int64_t> chosen(tokens * 3);
      std::vector<float> weights = numbers(tokens * 3, 11);
      std::mt19937 random(12);
      for (std::int64_t& id : chosen) id = std::uniform_int_distribution<std::int64_t>(-1, 8)(random);
      std::vector<double> wanted(tokens * kHidden, 0.0);
      for (std::size_t at = 0; at < chosen.size(); ++at) {
        const std::int64_t local = chosen[at] - 2;
        if (local < 0 || local >= static_cast<std::int64_t>(kCount)) continue;
        const auto expert = static_cast<std::size_t>(local);
        const std::vector<double> row(x.begin() + static_cast<std::ptrdiff_t>(at / 3 * kHidden), x.begin() + static_cast<std::ptrdiff_t>((at / 3 + 1) * kHidden));
        std::vector<double> h;
        for (std::size_t output = 0; output < kWidth; ++output) {
          const double gate = both.of(row, output, expert);
          h.push_back(gate / (1 + std::exp(-gate)) * up.of(row, output, expert));
        }
        for (std::size_t output = 0; output < kHidden; ++output) wanted[at / 3 * kHidden + output] += static_cast<double>(weights[at]) * down.of(h, output, expert);
      }
      hold_to("plain");
      std::vector<float> first(tokens * kHidden, -1.0f);
      experts(made, x.data(), chosen.data(), weights.data(), tokens, 3, first.data(), kTwo);
      CHECK(distance(first, wanted) < 2e-6);
      for (const std::string& kind : all_kinds()) {
        hold_to(kind);
        std::vector<float> y(tokens * kHidden, -1.0f);
        experts(made, x.data(), chosen.data(), weights.data(), tokens, 3, y.data(), kTwo);
        CHECK(y == first);
      }
    }
}

}  // namespace
