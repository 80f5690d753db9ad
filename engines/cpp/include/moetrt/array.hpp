// Numbers in memory of their own, shared by whoever holds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace moetrt {

// Memory that is not the host's: what lies there is written and read by copies alone. Calls of several threads are taken.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory() = default;

  // Zeroed, and let go with the last holder. Throws Error: there is not so much.
  virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
  virtual void write(std::byte* there, const std::byte* host, std::size_t bytes) = 0;
  virtual void read(std::byte* host, const std::byte* there, std::size_t bytes) = 0;
};

class Array {
 public:
  Array() = default;
  // Zeroed. `memory`: where; the host when there is none. Throws Error: the dtype is none that engines have, or there is no memory for so many.
  Array(const std::string& dtype, std::vector<std::int64_t> shape, std::shared_ptr<Memory> memory = nullptr);

  [[nodiscard]] const std::string& dtype() const noexcept { return dtype_; }
  [[nodiscard]] const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return size_ * item_; }
  // Not to be looked into unless `on_host`.
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] bool on_host() const noexcept { return !memory_; }
  // The numbers on the host: these themselves, or a copy.
  [[nodiscard]] Array host() const;
  // Takes the numbers of an array on the host, of the same dtype and size, wherever these lie.
  void fill(const Array& from) const;
  template <typename Number>
  [[nodiscard]] Number* as() const noexcept {
    return reinterpret_cast<Number*>(data_.get());
  }

 private:
  std::string dtype_;
  std::vector<std::int64_t> shape_;
  std::size_t size_ = 0, item_ = 0;
  std::shared_ptr<Memory> memory_;  // outlives what lies in it
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
