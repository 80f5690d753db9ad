// SHA-256 as FIPS 180-4 has it. Of our own: a library for these lines would be one more to find when running.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace moetrt {

class Sha256 {
 public:
  void add(std::string_view bytes);
  // Of all that was added, in hexadecimal; nothing is added after it.
  [[nodiscard]] std::string hex();

 private:
  void take(const unsigned char* block);

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  std::uint64_t bytes_ = 0;
};

// Throws Error: the file cannot be read.
std::string sha256_file(const std::filesystem::path& path);

}  // namespace moetrt
