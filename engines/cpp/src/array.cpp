#include "moetrt/array.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <new>

#include "moetrt/error.hpp"

namespace moetrt {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t item_bytes(const std::string& dtype) {
  static const std::map<std::string, std::size_t> known{{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8}};
  const auto found = known.find(dtype);
  if (found == known.end()) throw Error("there is no dtype '" + dtype + "' among engines.", "Known are float32, float16, bfloat16 and int64.");
  return found->second;
}

void require_alike(const std::vector<Array>& parts) {
  for (const Array& part : parts)
    if (part.dtype() != parts.front().dtype() || part.shape() != parts.front().shape())
      throw Error("the ranks' parts are not of one shape and dtype.", "The ranks were not built for each other; build them again.");
}

}  // namespace

Array::Array(const std::string& dtype, std::vector<std::int64_t> shape, std::shared_ptr<Memory> memory)
    : dtype_(dtype), shape_(std::move(shape)), size_(1), item_(item_bytes(dtype)), memory_(std::move(memory)) {
  for (const std::int64_t dim : shape_) {
    if (dim < 0 || (dim > 0 && size_ > std::numeric_limits<std::size_t>::max() / 16 / static_cast<std::size_t>(dim))) throw Error("an array of " + dtype + " is too large.");
    size_ *= static_cast<std::size_t>(dim);
  }
  if (memory_) {
    data_ = memory_->allocate(std::max<std::size_t>(bytes(), 1));
    return;
  }
  const std::size_t room = (bytes() + kAlignment) / kAlignment * kAlignment;
  auto* made = static_cast<std::byte*>(std::aligned_alloc(kAlignment, room));
  if (!made) throw Error("there is no memory for an array of " + std::to_string(bytes()) + " bytes.", "Ask for fewer tokens or rows.");
  std::memset(made, 0, room);
  data_ = std::shared_ptr<std::byte>(made, std::free);
}

Array Array::host() const {
  if (on_host()) return *this;
  Array copy(dtype_, shape_);
  memory_->read(copy.data(), data(), bytes());
  return copy;
}

void Array::fill(const Array& from) const {
  if (from.dtype() != dtype_ || from.size() != size_ || !from.on_host()) throw Error("an array of " + dtype_ + " cannot be filled from one of another dtype, size or place.");
  if (on_host())
    std::memcpy(data(), from.data(), bytes());
  else
    memory_->write(data(), from.data(), bytes());
}

Array all_reduce(const std::vector<Array>& parts) {
  require_alike(parts);
  const Array& first = parts.front();
  Array total(first.dtype(), first.shape());
  if (first.dtype() == "float32") {
    std::memcpy(total.data(), first.data(), first.bytes());
    for (std::size_t rank = 1; rank < parts.size(); ++rank)
      for (std::size_t i = 0; i < total.size(); ++i) total.as<float>()[i] += parts[rank].as<float>()[i];
    return total;
  }
  if (first.dtype() != "float16") throw Error("sums of " + first.dtype() + " are not made on a CPU.");
  for (std::size_t i = 0; i < total.size(); ++i) {
    float sum = half_to_float(first.as<std::uint16_t>()[i]);
    for (std::size_t rank = 1; rank < parts.size(); ++rank) sum += half_to_float(parts[rank].as<std::uint16_t>()[i]);
    total.as<std::uint16_t>()[i] = float_to_half(sum);
  }
  return total;
}

Array all_gather(const std::vector<Array>& parts) {
  require_alike(parts);
  const Array& first = parts.front();
  if (first.shape().empty()) throw Error("a number without axes cannot be gathered.");
  std::vector<std::int64_t> shape = first.shape();
  shape.back() *= static_cast<std::int64_t>(parts.size());
  Array whole(first.dtype(), shape);
  const std::size_t width = first.size() ? first.bytes() / first.size() * static_cast<std::size_t>(first.shape().back()) : 0;
  const std::size_t rows = width ? first.bytes() / width : 0;
  std::byte* to = whole.data();
  for (std::size_t row = 0; row < rows; ++row)
    for (const Array& part : parts) {
      std::memcpy(to, part.data() + row * width, width);
      to += width;
    }
  return whole;
}

float half_to_float(std::uint16_t half) noexcept {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 0) {
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -value : value;
  }
  const std::uint32_t bits = exponent == 31 ? sign | 0x7f800000u | (fraction << 13) : sign | ((exponent + 112) << 23) | (fraction << 13);
  return std::bit_cast<float>(bits);
}

std::uint16_t float_to_half(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds beyond the largest
  if (magnitude < 0x38800000u) {                                                    // below the smallest normal: a multiple of 2^-24
    const float steps = std::nearbyint(std::ldexp(std::bit_cast<float>(magnitude), 24));
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(steps));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace moetrt
