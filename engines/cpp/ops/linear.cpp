#include "linear.hpp"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace moetrt::ops {
namespace {

constexpr std::size_t kTokens = 512;  // that are multiplied at a time
constexpr std::size_t kPieces = 8;    // for each thread of the machine: fewer would end at different times, more begin to read anew too often
constexpr std::size_t kLeast = 16384;
constexpr std::size_t kFew = 8;  // rows below which a thread alone is as quick

}  // namespace

void each_row(std::size_t count, const Parallel& parallel, const std::function<void(std::size_t)>& work) {
  if (count >= kFew) return parallel(count, work);
  for (std::size_t one = 0; one < count; ++one) work(one);
}

std::size_t panels_at_a_time(std::size_t total, std::size_t panel_bytes) {
  static const std::size_t pieces = kPieces * std::max(1U, std::thread::hardware_concurrency());
  return std::max<std::size_t>(1, std::max(total / pieces, kLeast) / panel_bytes);
}

void linear(const Packed& matrix, Rounding rounding, float fixed, const float* x, std::size_t tokens, float* y, std::size_t outputs, const Parallel& parallel) {
  static thread_local Rows rows;
  const std::size_t panels = panels_at_a_time(matrix.bytes(), matrix.panel_bytes()), pieces = (matrix.panels() + panels - 1) / panels;
  for (std::size_t first = 0; first < tokens; first += kTokens) {
    const std::size_t count = std::min(kTokens, tokens - first);
    rows.resize(count, digits_of(rounding), matrix.inputs, matrix.block);
    Rows& of_all = rows;  // what other threads see is this thread's
    each_row(count, parallel, [&](std::size_t token) { round(x + (first + token) * matrix.inputs, rounding, fixed, of_all, token); });
    parallel(pieces, [&](std::size_t piece) {
      static thread_local Sums room;
      static thread_local std::vector<float> part;
      part.resize(count * kLanes);
      for (std::size_t panel = piece * panels; panel < std::min((piece + 1) * panels, matrix.panels()); ++panel) {
        multiply(matrix, panel, of_all, part.data(), kLanes, room);
        const std::size_t wide = std::min(kLanes, outputs - panel * kLanes);
        for (std::size_t token = 0; token < count; ++token) std::memcpy(y + (first + token) * outputs + panel * kLanes, part.data() + token * kLanes, wide * sizeof(float));
      }
    });
  }
}

}  // namespace moetrt::ops
