// A matrix as these kernels read it, in the order of the reading: exporter/lowering/panels.py writes it so.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moetrt::ops {

constexpr std::size_t kLanes = 16;  // outputs of a panel
constexpr std::size_t kGroup = 4;   // inputs that one instruction sums
constexpr std::size_t kTile = 64;   // inputs are filled up to a multiple of so many, by zeros

constexpr std::size_t filled(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit * unit; }

// Of integers: panels of 16 outputs, each `inputs / 4` groups of 16 outputs by 4 inputs. Values are unsigned, with 128 (of 4 bits: 8) added. Of 4 bits, a
// byte has a value of one group below and the same place's of the next above. Of floats, float32 (inputs, 16) and bfloat16 (inputs / 2, 16, 2), with
// no scales, and inputs filled up to an even number.
struct Packed {
  const std::uint8_t* values = nullptr;         // (outputs / 16, inputs / 4, 16, 4)
  const float* scales = nullptr;                // (outputs / 16, inputs / block, 16); null where they lie in bfloat16
  std::size_t inputs = 0;                       // as the model has them
  std::size_t outputs = 0;                      // a multiple of 16
  std::size_t block = 0;                        // inputs that share a scale; all of them where there is one scale for each output
  int bits = 8;                                 // 4 or 8, integers; 16, bfloat16; 32, float32
  std::size_t apart = 1;                        // 2 where another matrix's panels lie between its own
  const std::uint16_t* short_scales = nullptr;  // as `scales`, in bfloat16

  [[nodiscard]] std::size_t panels() const { return outputs / kLanes; }
  [[nodiscard]] std::size_t blocks() const { return inputs / block; }
  [[nodiscard]] bool floating() const { return bits > 8; }
  [[nodiscard]] std::size_t panel_bytes() const { return filled(inputs, floating() ? 2 : kTile) * kLanes * static_cast<std::size_t>(bits) / 8; }
  [[nodiscard]] std::size_t scale_count() const { return floating() ? 0 : panels() * apart * blocks() * kLanes; }
  // With what lies between its panels.
  [[nodiscard]] std::size_t bytes() const { return panels() * apart * panel_bytes(); }
  [[nodiscard]] const std::uint8_t* panel(std::size_t index) const { return values + index * apart * panel_bytes(); }
  // Where a block's scales of a panel begin, among all.
  [[nodiscard]] std::size_t scales_before(std::size_t index, std::size_t block) const { return (index * apart * blocks() + block) * kLanes; }
  // The matrix that lies so many bytes, and so many scales, behind this one.
  [[nodiscard]] Packed behind(std::size_t bytes, std::size_t count) const {
    Packed made = *this;
    made.values += bytes;
    if (scales) made.scales += count;
    if (short_scales) made.short_scales += count;
    return made;
  }
  [[nodiscard]] int middle() const { return bits == 4 ? 8 : 128; }
};

}  // namespace moetrt::ops
