// Attention over latents against plain sums in double precision, by every kind of product that this processor has.
#include "attention.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "ops_helpers.hpp"

namespace {

using namespace moetrt::ops;

struct Case {
  std::size_t heads, nope, rope, latent, value, batch, tokens, context;
  std::vector<std::int64_t> start;
};

const Case kCases[] = {
    {4, 16, 8, 32, 16, 1, 1, 8, {0}},      {4, 16, 8, 32, 16, 2, 7, 40, {0, 20}},  {8, 64, 32, 256, 64, 1, 1, 700, {611}}, {8, 64, 32, 256, 64, 3, 1, 300, {299, 0, 140}},
    {3, 15, 6, 48, 20, 1, 90, 400, {290}}, {128, 8, 4, 16, 8, 2, 70, 80, {3, 10}}, {2, 16, 0, 16, 16, 1, 5, 5, {0}}};

// Heads' matrices (heads, inputs, outputs) as panels of float32 or, cut to it, of bfloat16.
struct Heads {
  Heads(std::size_t heads, std::size_t inputs, std::size_t outputs, int bits, unsigned seed) : wide(numbers(heads * inputs * outputs, seed)) {
    packed = {nullptr, nullptr, inputs, filled(outputs, kLanes), inputs, bits};
    values.assign(heads * packed.bytes(), 0);
    for (std::size_t at = 0; at < wide.size(); ++at) {
      const std::size_t head = at / (inputs * outputs), input = at / outputs % inputs, output = at % outputs, lane = output % kLanes;
      std::uint8_t* const panel = values.data() + head * packed.bytes() + output / kLanes * packed.panel_bytes();
      wide[at] = put(panel, bits, input, lane, wide[at] / std::sqrt(static_cast<float>(inputs)));
    }
    packed.values = values.data();
  }
  std::vector<float> wide;
  std::vector<std::uint8_t> values;
  Packed packed;
};

struct Problem {
  Problem(const Case& given, int bits)
      : sizes(given),
        k_up(given.heads, given.nope, given.latent, bits, 1),
        v_up(given.heads, given.latent, given.value, bits, 2),
        q(numbers(given.batch * given.tokens * given.heads * (given.nope + given.rope), 3)),
        kv(numbers(given.batch * given.tokens * (given.latent + given.rope), 4)),
        cache(numbers(given.batch * given.context * (given.latent + given.rope), 5)),
        norm(numbers(given.latent, 6)),
        cos(numbers(given.context * given.rope / 2, 7)),
        sin(numbers(given.context * given.rope / 2, 8)) {
    attention = {given.heads, given.nope, given.rope, given.latent, given.value, 0.3f, 1e-6f, k_up.packed, v_up.packed, norm.data(), cos.data(), sin.data()};
  }

  // y; `after`: the cache.
  [[nodiscard]] std::vector<float> run(std::vector<float>& after) const {
    std::vector<float> y(sizes.batch * sizes.tokens * sizes.heads * sizes.value, -1.0f);
    after = cache;
    attend(attention, {q.data(), kv.data(), sizes.start.data(), sizes.batch, sizes.tokens, sizes.context, after.data(), y.data()}, kTwo);
    return y;
  }

  void turn(double* pair, std::size_t position, std::size_t at) const {
    const double c = cos[position * sizes.rope / 2 + at], s = sin[position * sizes.rope / 2 + at], even = pair[0], odd = pair[1];
    pair[0] = even * c - odd * s;
    pair[1] = even * s + odd * c;
  }

  [[nodiscard]] std::vector<double> entry_of(std::size_t token, std::size_t position) const {
    const std::size_t entry = sizes.latent + sizes.rope;
    std::vector<double> made(kv.begin() + static_cast<std::ptrdiff_t>(token * entry), kv.begin() + static_cast<std::ptrdiff_t>((token + 1) * entry));
    double squares = 0;
    for (std::size_t at = 0; at < sizes.latent; ++at) squares += made[at] * made[at];
    const double size = std::sqrt(squares / static_cast<double>(sizes.latent) + 1e-6);
    for (std::size_t at = 0; at < sizes.latent; ++at) made[at] = made[at] / size * norm[at];
    for (std::size_t at = 0; at < sizes.rope / 2; ++at) turn(&made[sizes.latent + 2 * at], position, at);
    return made;
  }

  // What `run` gives, head by head with keys and values that are never expanded.
  [[nodiscard]] std::vector<double> plain(std::vector<double>& after) const {
    const std::size_t entry = sizes.latent + sizes.rope, query = sizes.nope + sizes.rope;
    after.assign(cache.begin(), cache.end());
    const auto position = [&](std::size_t token) { return static_cast<std::size_t>(sizes.start[token / sizes.tokens]) + token % sizes.tokens; };
    const auto place = [&](std::size_t token, std::size_t at) { return (token / sizes.tokens * sizes.context + at) * entry; };
    for (std::size_t token = 0; token < sizes.batch * sizes.tokens; ++token) {
      const std::vector<double> made = entry_of(token, position(token));
      std::copy(made.begin(), made.end(), after.begin() + static_cast<std::ptrdiff_t>(place(token, position(token))));
    }
    std::vector<double> y;
    for (std::size_t token = 0; token < sizes.batch * sizes.tokens; ++token)
      for (std::size_t head = 0; head < sizes.heads; ++head) {
        const float* from = q.data() + (token * sizes.heads + head) * query;
        std::vector<double> asks(entry, 0.0), weights, mixed(sizes.latent, 0.0);
        for (std::size_t at = 0; at < sizes.latent; ++at)
          for (std::size_t input = 0; input < sizes.nope; ++input) asks[at] += 0.3 * from[input] * k_up.wide[(head * sizes.nope + input) * sizes.latent + at];
        for (std::size_t at = 0; at < sizes.rope; ++at) asks[sizes.latent + at] = 0.3 * from[sizes.nope + at];
        for (std::size_t at = 0; at < sizes.rope / 2; ++at) turn(&asks[sizes.latent + 2 * at], position(token), at);
        double most = -1e300, sum = 0;
        for (std::size_t at = 0; at <= position(token); ++at) {
          double score = 0;
          for (std::size_t input = 0; input < entry; ++input) score += asks[input] * after[place(token, at) + input];
          weights.push_back(score);
          most = std::max(most, score);
        }
        for (double& weight : weights) sum += weight = std::exp(weight - most);
        for (std::size_t at = 0; at < weights.size(); ++at)
          for (std::size_t input = 0; input < sizes.latent; ++input) mixed[input] += weights[at] / sum * after[place(token, at) + input];
        for (std::size_t at = 0; at < sizes.value; ++at) {
          double value = 0;
          for (std::size_t input = 0; input < sizes.latent; ++input) value += mixed[input] * v_up.wide[(head * sizes.latent + input) * sizes.value + at];
          y.push_back(value);
        }
      }
    return y;
  }

  Case sizes;
  Heads k_up, v_up;
  std::vector<float> q, kv, cache, norm, cos, sin;
  LatentAttention attention;
};

TEST_CASE("attention is softmax over the positions so far, to the same bits by every kind") {
  for (const Case& given : kCases)
    for (const int bits : {16, 32}) {
      const Problem problem(given, bits);
      hold_to("plain");
      std::vector<float> cache, after;
      std::vector<double> wanted_cache;
      const std::vector<float> first = problem.run(cache);
      CHECK(distance(first, problem.plain(wanted_cache)) < 3e-6);
      CHECK(distance(cache, wanted_cache) < 1e-6);
      for (const std::string& kind : all_kinds()) {
        hold_to(kind);
        CHECK(problem.run(after) == first);
        CHECK(after == cache);
      }
    }
}

TEST_CASE("a row's numbers do not depend on the rows beside it") {
  const Case together = {8, 16, 8, 32, 16, 3, 1, 600, {590, 3, 400}};
  const Problem all(together, 16);
  std::vector<float> cache;
  const std::vector<float> y = all.run(cache);
  for (std::size_t row = 0; row < 3; ++row) {
    Problem one({8, 16, 8, 32, 16, 1, 1, 600, {together.start[row]}}, 16);
    const auto part = [&](const std::vector<float>& from) {
      return std::vector<float>(from.begin() + static_cast<std::ptrdiff_t>(row * from.size() / 3), from.begin() + static_cast<std::ptrdiff_t>((row + 1) * from.size() / 3));
    };
    one.q = part(all.q);
    one.kv = part(all.kv);
    one.cache = part(all.cache);
    std::vector<float> after;
    CHECK(one.run(after) == part(y));
  }
}

TEST_CASE("what is no number stays in its row, and stale entries are not read") {
  Problem problem({4, 16, 8, 32, 16, 2, 2, 40, {5, 5}}, 16);
  problem.kv[0] = NAN;
  for (std::size_t at = 8 * 40; at < problem.cache.size() / 2; ++at) problem.cache[at] = INFINITY;
  std::vector<float> cache;
  const std::vector<float> y = problem.run(cache);
  for (std::size_t at = 0; at < y.size(); ++at) CHECK(std::isnan(y[at]) == (at < y.size() / 2));
}

}  // namespace
