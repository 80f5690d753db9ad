#include "moetrt/sampler.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <vector>

#include "moetrt/error.hpp"

using namespace moetrt;

TEST_CASE("greedy takes the first of the likeliest tokens") {
  const std::vector<float> logits{0, 3, 1, 3};
  CHECK(Sampler({}, 0).next(logits) == 1);
}

TEST_CASE("a seed gives the same tokens again, another row others") {
  const std::vector<float> logits(1000, 0.0f);
  Sampling sampling{1.0, 1.0, 7};
  std::vector<std::int64_t> first, again, other;
  Sampler one(sampling, 0), same(sampling, 0), neighbour(sampling, 1);
  for (int i = 0; i < 20; ++i) {
    first.push_back(one.next(logits));
    again.push_back(same.next(logits));
    other.push_back(neighbour.next(logits));
  }
  CHECK(first == again);
  CHECK(first != other);
}

TEST_CASE("a small nucleus is the likeliest token") {
  const std::vector<float> logits{0, 1, 5, 2};
  Sampler sampler({1.0, 0.1, 3}, 0);
  for (int i = 0; i < 50; ++i) CHECK(sampler.next(logits) == 2);
}

TEST_CASE("what cannot be drawn by is refused") {
  CHECK_THROWS_AS(Sampler({-1.0, 1.0, {}}, 0), Error);
  CHECK_THROWS_AS(Sampler({1.0, 0.0, {}}, 0), Error);
  CHECK_THROWS_AS(Sampler({1.0, 1.5, {}}, 0), Error);
}

TEST_CASE("a logit that is no number is named, not chosen") {
  const std::vector<float> logits{0, 3, std::numeric_limits<float>::quiet_NaN(), 7};
  for (const double temperature : {0.0, 1.0}) CHECK_THROWS_WITH_AS(Sampler({temperature, 1.0, 1}, 0).next(logits), "the logit of token 2 is not a number (NaN).", Error);
}
