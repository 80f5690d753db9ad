// A product with one quantised matrix: the op moetrt.PackedLinear.
#pragma once

#include <cstddef>
#include <functional>

#include "packed.hpp"
#include "rows.hpp"

namespace moetrt::ops {

// Does `work` for each number below `count`, in any order, on as many threads as there are.
using Parallel = std::function<void(std::size_t count, const std::function<void(std::size_t)>& work)>;

// The same for rows, of which a few are not worth another thread.
void each_row(std::size_t count, const Parallel& parallel, const std::function<void(std::size_t)>& work);

// Panels of so many bytes that a thread takes at a time, where `total` bytes of panels are shared out.
std::size_t panels_at_a_time(std::size_t total, std::size_t panel_bytes);

// y = x · matrix. `fixed`: the scale of Rounding::fixed. x: (tokens, inputs); y: (tokens, outputs), where `outputs` may leave out the last of the matrix's.
void linear(const Packed& matrix, Rounding rounding, float fixed, const float* x, std::size_t tokens, float* y, std::size_t outputs, const Parallel& parallel);

}  // namespace moetrt::ops
