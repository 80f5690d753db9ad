// tokenizer.json, as Hugging Face's tokenizers write it: read strictly, and only the parts that byte-level tokenizers have.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "byte_pairs.hpp"

namespace moetrt {

// A token that is found in the text itself, before anything is cut.
struct AddedToken {
  std::string content;
  std::uint32_t id;
  bool special;
  bool normalized;  // looked for after those that are not
};

struct TokenizerFile {
  Vocabulary vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added;
  std::vector<std::string> splits;          // regular expressions; each cuts what the one before left
  std::vector<std::int64_t> before, after;  // tokens around every text
};

// The file's text; `where` names it in errors. What a fuzzer feeds.
// Throws Error: it is damaged, or has a part that would give other ids here than in Python; the message names the part.
TokenizerFile parse_tokenizer(const std::string& text, const std::string& where);

}  // namespace moetrt
