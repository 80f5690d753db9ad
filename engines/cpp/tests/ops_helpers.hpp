// What tests of the kernels for CPUs share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
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

// Puts a float into a panel of float32 or, cut to it, of bfloat16. Returns what lies there then.
inline float put(std::uint8_t* panel, int bits, std::size_t input, std::size_t lane, float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  if (bits == 16) {
    const auto half = static_cast<std::uint16_t>(word >> 16);
    std::memcpy(panel + ((input / 2 * kLanes + lane) * 2 + input % 2) * sizeof(half), &half, sizeof(half));
    word &= 0xffff0000U;
  } else {
    std::memcpy(panel + (input * kLanes + lane) * sizeof(word), &word, sizeof(word));
  }
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

}  // namespace moetrt::ops
