#include "moetrt/array.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "moetrt/error.hpp"

using namespace moetrt;

namespace {

Array floats(std::vector<std::int64_t> shape, const std::vector<float>& values) {
  Array array("float32", std::move(shape));
  std::copy(values.begin(), values.end(), array.as<float>());
  return array;
}

std::vector<float> values(const Array& array) { return {array.as<float>(), array.as<float>() + array.size()}; }

}  // namespace

TEST_CASE("parts are summed in rank order, in float32") {
  // 1e8 + 1 - 1e8 is 0 in that order and 1 in another.
  const Array sum = all_reduce({floats({1}, {1e8f}), floats({1}, {1.0f}), floats({1}, {-1e8f})});
  CHECK(values(sum) == std::vector<float>{0.0f});
}

TEST_CASE("parts are gathered along the last axis, row by row") {
  const Array whole = all_gather({floats({2, 2}, {1, 2, 3, 4}), floats({2, 2}, {5, 6, 7, 8})});
  CHECK(whole.shape() == std::vector<std::int64_t>{2, 4});
  CHECK(values(whole) == std::vector<float>{1, 2, 5, 6, 3, 4, 7, 8});
}

TEST_CASE("parts of other shapes are refused") { CHECK_THROWS_AS(all_reduce({floats({2}, {1, 2}), floats({1}, {1})}), Error); }

TEST_CASE("every half goes to float and back") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    if (std::isnan(value))
      CHECK(std::isnan(half_to_float(float_to_half(value))));
    else
      REQUIRE(float_to_half(value) == half);
  }
}

TEST_CASE("halves are rounded to nearest, ties to even") {
  CHECK(float_to_half(1.0f + 1.0f / 2048) == float_to_half(1.0f));               // a tie, down to even
  CHECK(float_to_half(1.0f + 3.0f / 2048) == float_to_half(1.0f + 1.0f / 512));  // a tie, up to even
  CHECK(float_to_half(65519.0f) == 0x7bff);
  CHECK(float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(std::ldexp(1.0f, -25)) == 0);  // half of the smallest: a tie to zero
  CHECK(float_to_half(std::ldexp(1.5f, -25)) == 1);
}

TEST_CASE("a dtype that no engine has is refused by name") { CHECK_THROWS_WITH_AS(Array("complex64", {1}), "there is no dtype 'complex64' among engines.", Error); }

TEST_CASE("an array beyond memory is refused") { CHECK_THROWS_AS(Array("float32", {INT64_MAX, INT64_MAX}), Error); }
