// The routed experts in plain loops: what the kernels are held against.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "emulator.hpp"
#include "experts.hpp"

namespace moetrt::kernels {
namespace {

float read(const void* numbers, std::size_t index, Numbers type) {
  if (type == Numbers::float32) return static_cast<const float*>(numbers)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(numbers)[index];
  if (type == Numbers::float16) return emulator::from_half(bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

void write(void* numbers, std::size_t index, Numbers type, float value) {
  if (type == Numbers::float32)
    static_cast<float*>(numbers)[index] = value;
  else
    static_cast<std::uint16_t*>(numbers)[index] = type == Numbers::float16 ? emulator::to_half(value) : emulator::to_bfloat16(value);
}

float through(float value, Numbers type) {
  std::uint32_t room = 0;
  write(&room, 0, type, value);
  return read(&room, 0, type);
}

struct Rounded {
  std::vector<int> values;
  float scale;
};

Rounded rounded(const std::vector<float>& row, const float* fixed) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::abs(value));
  const float scale = fixed ? *fixed : std::max(largest, kLeastRange) / 127.0f;
  Rounded made{{}, scale};
  for (const float value : row) made.values.push_back(static_cast<int>(std::clamp(std::nearbyint(value / scale), -128.0f, 127.0f)));
  return made;
}

// One column of a product: of floats, or of int8 and scaled.
class Linear {
 public:
  Linear(const void* weights, const void* scales, int depth, Numbers numbers) : weights_(weights), scales_(scales), depth_(static_cast<std::size_t>(depth)), numbers_(numbers) {}

  [[nodiscard]] float of(const std::vector<float>& row, std::size_t column) const {
    double total = 0;
    for (std::size_t k = 0; k < depth_; ++k) total += static_cast<double>(row[k]) * read(weights_, column * depth_ + k, numbers_);
    return static_cast<float>(total);
  }

  [[nodiscard]] float of(const Rounded& row, std::size_t column) const {
    std::int32_t total = 0;
    for (std::size_t k = 0; k < depth_; ++k) total += row.values[k] * static_cast<const std::int8_t*>(weights_)[column * depth_ + k];
    return static_cast<float>(total) * read(scales_, column, numbers_) * row.scale;
  }

 private:
  const void *weights_, *scales_;
  std::size_t depth_;
  Numbers numbers_;
};

template <typename Row>
std::vector<float> hidden_of(const ExpertsParams& params, const Linear& gate_up, const Row& row, std::size_t expert) {
  std::vector<float> h;
  const auto width = static_cast<std::size_t>(params.width);
  for (std::size_t column = 0; column < width; ++column) {
    const float gate = gate_up.of(row, expert * 2 * width + 2 * column), up = gate_up.of(row, expert * 2 * width + 2 * column + 1);
    h.push_back(gate / (1.0f + std::exp(-gate)) * up);
  }
  return h;
}

}  // namespace

void reference(const ExpertsParams& params, const ExpertsPointers& pointers) {
  const auto hidden = static_cast<std::size_t>(params.hidden), top_k = static_cast<std::size_t>(params.top_k);
  const Linear gate_up(pointers.gate_up, pointers.gate_up_scale, params.hidden, params.numbers), down(pointers.down, pointers.down_scale, params.width, params.numbers);
  const bool fixed = params.activations == Activations::int8_static, floats = params.activations == Activations::floats;
  const float x_scale = fixed ? read(pointers.x_scale, 0, params.numbers) : 0;
  for (std::size_t token = 0; token < static_cast<std::size_t>(params.tokens); ++token) {
    std::vector<float> x(hidden), y(hidden, 0.0f);
    for (std::size_t column = 0; column < hidden; ++column) x[column] = read(pointers.x, token * hidden + column, params.numbers);
    const Rounded x_rounded = rounded(x, fixed ? &x_scale : nullptr);
    for (int expert = 0; expert < params.experts; ++expert)
      for (std::size_t place = 0; place < top_k; ++place) {
        if (pointers.experts[token * top_k + place] != params.first_expert + expert) continue;
        const auto local = static_cast<std::size_t>(expert);
        const float weight = pointers.weights[token * top_k + place], h_scale = fixed ? read(pointers.h_scale, local, params.numbers) : 0;
        std::vector<float> h = floats ? hidden_of(params, gate_up, x, local) : hidden_of(params, gate_up, x_rounded, local);
        if (floats)
          for (float& value : h) value = through(value, params.numbers);
        const Rounded h_rounded = rounded(h, fixed ? &h_scale : nullptr);
        for (std::size_t column = 0; column < hidden; ++column) {
          const std::size_t at = local * hidden + column;
          y[column] += through(weight * (floats ? down.of(h, at) : down.of(h_rounded, at)), params.numbers);
        }
      }
    for (std::size_t column = 0; column < hidden; ++column) write(pointers.y, token * hidden + column, params.numbers, y[column]);
  }
}

}  // namespace moetrt::kernels
