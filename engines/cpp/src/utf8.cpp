#include "utf8.hpp"

#include <unordered_map>

namespace moetrt {
namespace {

using Byte = unsigned char;

// A first byte's sequence: how long it is, and the range of its second byte (the Unicode Standard, table 3-7).
struct Lead {
  std::size_t length;
  Byte low, high;
};

Lead lead(Byte first) noexcept {
  if (first < 0x80) return {1, 0, 0};
  if (first < 0xC2 || first > 0xF4) return {0, 0, 0};
  if (first < 0xE0) return {2, 0x80, 0xBF};
  if (first < 0xF0) return {3, static_cast<Byte>(first == 0xE0 ? 0xA0 : 0x80), static_cast<Byte>(first == 0xED ? 0x9F : 0xBF)};
  return {4, static_cast<Byte>(first == 0xF0 ? 0x90 : 0x80), static_cast<Byte>(first == 0xF4 ? 0x8F : 0xBF)};
}

// A code point below 0x800, which is all that the alphabet has.
std::string encoded(unsigned code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

bool seen_on_paper(unsigned byte) noexcept { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD); }

std::array<std::string, 256> make_alphabet() {
  std::array<std::string, 256> made;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) made[byte] = encoded(seen_on_paper(byte) ? byte : next++);
  return made;
}

std::unordered_map<std::string_view, char> make_bytes() {
  std::unordered_map<std::string_view, char> made;
  for (unsigned byte = 0; byte < 256; ++byte) made.emplace(byte_alphabet()[byte], static_cast<char>(byte));
  return made;
}

}  // namespace

Character character_at(std::string_view bytes, std::size_t at) noexcept {
  const auto [length, low, high] = lead(static_cast<Byte>(bytes[at]));
  if (length == 0) return {1, false};
  for (std::size_t place = 1; place < length; ++place) {
    const bool there = at + place < bytes.size();
    const Byte byte = there ? static_cast<Byte>(bytes[at + place]) : 0;
    if (!there || byte < (place == 1 ? low : 0x80) || byte > (place == 1 ? high : 0xBF)) return {place, false};
  }
  return {length, true};
}

std::optional<std::size_t> first_invalid(std::string_view bytes) noexcept {
  for (std::size_t at = 0; at < bytes.size();) {
    const Character next = character_at(bytes, at);
    if (!next.whole) return at;
    at += next.length;
  }
  return std::nullopt;
}

std::string as_text(std::string_view bytes) {
  std::string made;
  made.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const Character next = character_at(bytes, at);
    made += next.whole ? bytes.substr(at, next.length) : kReplacement;
    at += next.length;
  }
  return made;
}

const std::array<std::string, 256>& byte_alphabet() {
  static const std::array<std::string, 256> alphabet = make_alphabet();
  return alphabet;
}

std::string bytes_of(const std::string& token) {
  static const std::unordered_map<std::string_view, char> bytes = make_bytes();
  std::string made;
  for (std::size_t at = 0; at < token.size();) {
    const std::size_t length = character_at(token, at).length;
    const auto found = bytes.find(std::string_view(token).substr(at, length));
    if (found == bytes.end()) return token;
    made += found->second;
    at += length;
  }
  return made;
}

}  // namespace moetrt
