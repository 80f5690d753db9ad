// Numbers in memory of their own, shared by whoever holds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace moetrt {

class Array {
 public:
  Array() = default;
  // Zeroed. Throws Error: the dtype is none that engines have, or there is no memory for so many.
  Array(const std::string& dtype, std::vector<std::int64_t> shape);

  [[nodiscard]] const std::string& dtype() const noexcept { return dtype_; }
  [[nodiscard]] const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return size_ * item_; }
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  template <typename Number>
  [[nodiscard]] Number* as() const noexcept {
    return reinterpret_cast<Number*>(data_.get());
  }

 private:
  std::string dtype_;
  std::vector<std::int64_t> shape_;
  std::size_t size_ = 0, item_ = 0;
  std::shared_ptr<std::byte> data_;
};

// What the tensor ranks of a stage make of their parts, in rank order: their sum in float32, in the dtype of the parts.
Array all_reduce(const std::vector<Array>& parts);

// The parts side by side along the last axis.
Array all_gather(const std::vector<Array>& parts);

float half_to_float(std::uint16_t half) noexcept;
// Rounded to nearest, ties to even.
std::uint16_t float_to_half(float value) noexcept;

}  // namespace moetrt
