// Bytes and characters: what is UTF-8, and how byte-level tokenizers spell bytes as characters.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace moetrt {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD, for bytes that are no character

// The bytes at `at`: one character, or the longest beginning of one that a wrong byte or the end cuts off.
struct Character {
  std::size_t length;
  bool whole;
};
Character character_at(std::string_view bytes, std::size_t at) noexcept;

// Where `bytes` stop being UTF-8.
std::optional<std::size_t> first_invalid(std::string_view bytes) noexcept;

// `bytes` as text, each part that is no character replaced by U+FFFD.
std::string as_text(std::string_view bytes);

// Byte → the character that stands for it in a byte-level vocabulary: itself where it is seen on paper, else one from U+0100 on.
const std::array<std::string, 256>& byte_alphabet();

// What a token's characters stand for; its own UTF-8 where one of them stands for no byte.
std::string bytes_of(const std::string& token);

}  // namespace moetrt
