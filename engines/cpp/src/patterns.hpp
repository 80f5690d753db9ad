// Regular expressions, by the library that Hugging Face's tokenizers use: Oniguruma, opened when running.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moetrt {

// Oniguruma's shared library, loaded once a process; when empty, `libonig.so.5` as the loader finds it.
// Throws Error: it cannot be loaded, or is another library.
void open_patterns(const std::string& library = {});

// Refuses text with characters that are younger than the library's tables: Python's library may know them, and would cut the text elsewhere.
void require_known_characters(std::string_view text);

class Pattern {
 public:
  // :param where: names it in errors. Throws Error: it is no regular expression.
  Pattern(const std::string& expression, std::string where);

  // `text` cut before and after each match: matches and what lies between them, in order, none empty. :param text: UTF-8
  void cut(std::string_view text, std::vector<std::string_view>& pieces) const;

  // Where the first match begins; npos where there is none.
  [[nodiscard]] std::size_t find(std::string_view text) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
  std::string where_;
};

}  // namespace moetrt
