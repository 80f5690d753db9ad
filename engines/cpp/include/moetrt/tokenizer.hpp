// Text to token ids and back, by the tokenizer.json beside the engines: byte-level byte pair encoding, as DeepSeek's checkpoints have it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moetrt {

class Tokenizer {
 public:
  // The tokenizer of a folder of engines. :param bos: put before every text that does not begin with it (Manifest::bos).
  // Throws Error: there is no tokenizer.json, it is damaged, or it has a part that would give other ids here than in Python.
  static Tokenizer load(const std::filesystem::path& folder, std::optional<std::int64_t> bos = {});

  // Oniguruma, whose regular expressions `encode` needs (`decode` does not), loaded once a process.
  // :param library: its path or name; when empty, `libonig.so.5` as the loader finds it. Throws Error: it cannot be loaded.
  static void open_patterns(const std::string& library = {});

  // Throws Error: `text` is not UTF-8, or has characters that Oniguruma's tables are too old for.
  [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text) const;

  // Special tokens and ids of no token are left out; bytes that are no character become U+FFFD.
  [[nodiscard]] std::string decode(std::span<const std::int64_t> token_ids) const;

 private:
  friend class Streamer;
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts);
  std::shared_ptr<const Parts> parts_;
};

// Text as it grows, whole characters at a time.
class Streamer {
 public:
  explicit Streamer(Tokenizer tokenizer);

  // What this token adds to what was shown; nothing while a character is incomplete.
  std::string add(std::int64_t token);

  // What is left when no token follows: an unfinished character as it is.
  std::string end();

 private:
  Tokenizer tokenizer_;
  std::string pending_;  // bytes that are not shown yet
};

}  // namespace moetrt
