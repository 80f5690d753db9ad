// From logits to the next token.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>

namespace moetrt {

struct Sampling {
  double temperature = 0;  // 0 takes the likeliest token
  double top_p = 1;        // draw from the likeliest tokens that reach this probability together
  std::optional<std::uint64_t> seed;
};

// Draws one row's tokens. Seeds give the same text from run to run, and another one than Python's: the generators differ.
class Sampler {
 public:
  // Throws Error: a temperature below 0, or a top_p that is not above 0 and at most 1.
  Sampler(const Sampling& sampling, std::uint64_t row);
  // :param logits: of one position; the first of several largest is taken. Throws Error: one is not a number.
  std::int64_t next(std::span<const float> logits);

 private:
  Sampling sampling_;
  std::mt19937_64 chance_;
};

}  // namespace moetrt
