#include "moetrt/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <vector>

#include "moetrt/error.hpp"

namespace moetrt {
namespace {

std::string shown(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace

Sampler::Sampler(const Sampling& sampling, std::uint64_t row) : sampling_(sampling) {
  if (!(sampling.temperature >= 0)) throw UsageError("--temperature is " + shown(sampling.temperature) + "; it must be 0 or more.", "0 is greedy.");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) throw UsageError("--top-p is " + shown(sampling.top_p) + "; it must be above 0 and at most 1.");
  std::random_device fresh;
  const std::uint64_t seed = sampling.seed.value_or((static_cast<std::uint64_t>(fresh()) << 32) | fresh());
  std::seed_seq mixed{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), static_cast<std::uint32_t>(row)};
  chance_.seed(mixed);
}

std::int64_t Sampler::next(std::span<const float> logits) {
  if (const auto none = std::find_if(logits.begin(), logits.end(), [](float logit) { return std::isnan(logit); }); none != logits.end())
    throw Error("the logit of token " + std::to_string(none - logits.begin()) + " is not a number (NaN).",
                "Look for NaN among the checkpoint's weights; `moetrt compare` names the segment where numbers part.");
  const auto best = std::max_element(logits.begin(), logits.end());
  if (sampling_.temperature == 0) return best - logits.begin();
  std::vector<double> chances(logits.size());
  for (std::size_t token = 0; token < logits.size(); ++token) chances[token] = std::exp((static_cast<double>(logits[token]) - *best) / sampling_.temperature);
  const double total = std::accumulate(chances.begin(), chances.end(), 0.0);
  if (sampling_.top_p < 1) {
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t one, std::size_t other) { return chances[one] > chances[other]; });
    double before = 0;
    for (const std::size_t token : order) {
      const double mine = chances[token];
      if (before >= sampling_.top_p * total) chances[token] = 0;
      before += mine;
    }
  }
  return std::discrete_distribution<std::int64_t>(chances.begin(), chances.end())(chance_);
}

}  // namespace moetrt
