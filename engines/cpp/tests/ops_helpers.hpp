// What tests of the kernels for CPUs share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "linear.hpp"
#include "products.hpp"

namespace moetrt::ops {

// Two threads that share out what there is.
inline const Parallel kTwo = [](std::size_t count, const std::function<void(std::size_t)>& work) {
  std::atomic<std::size_t> next{0};
  const auto run = [&] {
    for (std::size_t one = next++; one < count; one = next++) work(one);
  };
  std::thread other(run);
  run();
  other.join();
};

inline std::vector<std::string> all_kinds() {
  hold_to("amx");
  return kinds();
}

inline std::vector<float> numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> made(count);
  std::generate(made.begin(), made.end(), [&] { return normal(random); });
  return made;
}

inline double distance(const std::vector<float>& got, const std::vector<double>& wanted) {
  double apart = 0, size = 0;
  for (std::size_t at = 0; at < got.size(); ++at) {
    apart += (got[at] - wanted[at]) * (got[at] - wanted[at]);
    size += wanted[at] * wanted[at];
  }
  return std::sqrt(apart / std::max(size, 1e-300));
}

}  // namespace moetrt::ops
