// The routed experts that a rank holds, quantised: the op moetrt.PackedExperts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear.hpp"
#include "packed.hpp"
#include "rows.hpp"

namespace moetrt::ops {

struct Experts {
  Packed gate, up, down;  // of the first expert; those of the others lie after it
  std::size_t count = 0;  // local experts
  std::int64_t first = 0;
  Rounding rounding = Rounding::exact;
  const float* x_scale = nullptr;  // (), of Rounding::fixed
  const float* h_scale = nullptr;  // (count)

  [[nodiscard]] std::size_t hidden() const { return gate.inputs; }
  [[nodiscard]] std::size_t width() const { return down.inputs; }
};

// y[token] = Σ weight · expert(x[token]) over its local experts, in the order of `chosen`.
// x, y: (tokens, hidden); chosen: ids among all ranks' experts, (tokens, top_k); weights: likewise.
void experts(const Experts& experts, const float* x, const std::int64_t* chosen, const float* weights, std::size_t tokens, std::size_t top_k, float* y, const Parallel& parallel);

}  // namespace moetrt::ops
