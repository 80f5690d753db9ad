#include "patterns.hpp"

#include <oniguruma.h>

#include <array>
#include <cstdio>
#include <mutex>
#include <sstream>

#include "library.hpp"
#include "moetrt/error.hpp"
#include "utf8.hpp"

namespace moetrt {
namespace {

// The functions that are called, by the names and types of the header.
struct Functions {
  decltype(&onig_initialize) initialize;
  decltype(&onig_version) version;
  decltype(&onig_new) compile;
  decltype(&onig_free) free;
  decltype(&onig_search) search;
  decltype(&onig_region_new) region_new;
  decltype(&onig_region_free) region_free;
  decltype(&onig_error_code_to_str) describe;
  OnigEncodingType* utf8;
  OnigSyntaxType* syntax;
  bool complete = true;
};

constexpr std::array<int, 3> kTables{6, 9, 10};  // the release whose tables, of Unicode 16, Python's library has

std::mutex opening;
const Functions* opened = nullptr;  // never closed: patterns may outlive every other static

template <typename Symbol>
void take(const Library& from, const char* name, Symbol& symbol, bool& complete) {
  symbol = from.symbol<Symbol>(name);
  complete = complete && symbol;
}

Functions symbols(const Library& from) {
  Functions made{};
  OnigSyntaxType* const* syntax = nullptr;
  take(from, "onig_initialize", made.initialize, made.complete);
  take(from, "onig_version", made.version, made.complete);
  take(from, "onig_new", made.compile, made.complete);
  take(from, "onig_free", made.free, made.complete);
  take(from, "onig_search", made.search, made.complete);
  take(from, "onig_region_new", made.region_new, made.complete);
  take(from, "onig_region_free", made.region_free, made.complete);
  take(from, "onig_error_code_to_str", made.describe, made.complete);
  take(from, "OnigEncodingUTF8", made.utf8, made.complete);
  take(from, "OnigDefaultSyntax", syntax, made.complete);
  made.syntax = syntax ? *syntax : nullptr;
  return made;
}

const Functions& library() {
  open_patterns();
  return *opened;
}

const OnigUChar* first(std::string_view text) { return reinterpret_cast<const OnigUChar*>(text.data()); }
const OnigUChar* past(std::string_view text) { return first(text) + text.size(); }

std::string told(int code, OnigErrorInfo* info = nullptr) {
  std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> text{};
  const int length = info ? library().describe(text.data(), code, info) : library().describe(text.data(), code);
  return {text.begin(), text.begin() + length};
}

bool older_than_pythons(const std::string& version) {
  std::array<int, 3> parts{};
  std::istringstream text(version);
  for (int& part : parts) {
    text >> part;
    text.ignore(1, '.');
  }
  return parts < kTables;
}

// As Unicode writes it, U+0041. `text` is one character.
std::string code_point(std::string_view text) {
  unsigned code = static_cast<unsigned char>(text[0]);
  if (text.size() > 1) code &= 0x7Fu >> text.size();
  for (std::size_t place = 1; place < text.size(); ++place) code = code << 6 | (static_cast<unsigned char>(text[place]) & 0x3F);
  std::array<char, 16> written{};
  std::snprintf(written.data(), written.size(), "U+%04X", code);
  return written.data();
}

using Region = std::unique_ptr<OnigRegion, void (*)(OnigRegion*)>;

Region region() {
  const Functions& functions = library();
  // The library's own function takes a second argument.
  return {functions.region_new(), [](OnigRegion* made) { library().region_free(made, 1); }};
}

}  // namespace

void open_patterns(const std::string& library) {
  const std::lock_guard<std::mutex> lock(opening);
  if (opened) return;
  const std::string name = library.empty() ? "libonig.so.5" : library;
  Functions found = symbols(Library("Oniguruma's library, which reading text needs,", {name},
                                    "Give its path with --oniguruma (Debian's package is libonig5; engines/cpp/dependencies.sh has it in lib/), or give --token-ids."));
  if (!found.complete) throw Error(name + " is no Oniguruma 6.", "Give another library.");
  found.initialize(&found.utf8, 1);
  opened = new Functions(found);
}

void require_known_characters(std::string_view text) {
  static const std::string version = library().version();
  static const bool older = older_than_pythons(version);
  if (!older) return;
  static const Pattern unassigned("[\\p{Cn}&&\\P{Noncharacter_Code_Point}]", "the pattern of unassigned characters");
  const std::size_t at = unassigned.find(text);
  if (at == std::string_view::npos) return;
  const std::string_view found = text.substr(at, character_at(text, at).length);
  throw Error("the character " + code_point(found) + " at byte " + std::to_string(at) + " is unknown to Oniguruma " + version +
                  ", whose tables are older than those of Python's tokenizers.",
              "Give Oniguruma 6.9.10 or newer with --oniguruma, or give --token-ids.");
}

struct Pattern::Compiled {
  OnigRegex regex = nullptr;

  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() {
    if (regex) library().free(regex);
  }

  // Whether there is a match from `start` on, which `found` then holds.
  [[nodiscard]] bool search(std::string_view text, std::size_t start, OnigRegion* found, const std::string& where) const {
    const int at = library().search(regex, first(text), past(text), first(text) + start, past(text), found, ONIG_OPTION_NONE);
    if (at == ONIG_MISMATCH) return false;
    if (at < 0) throw Error(where + " cannot be matched: " + told(at) + ".");
    return true;
  }
};

Pattern::Pattern(const std::string& expression, std::string where) : where_(std::move(where)) {
  const Functions& functions = library();
  auto made = std::make_shared<Compiled>();
  OnigErrorInfo info{};
  const int code = functions.compile(&made->regex, first(expression), past(expression), ONIG_OPTION_NONE, functions.utf8, functions.syntax, &info);
  if (code != ONIG_NORMAL) {
    made->regex = nullptr;
    throw Error(where_ + " is no regular expression: " + told(code, &info) + ".");
  }
  compiled_ = std::move(made);
}

void Pattern::cut(std::string_view text, std::vector<std::string_view>& pieces) const {
  const Region found = region();
  const auto keep = [&](std::size_t from, std::size_t to) {
    if (from < to) pieces.push_back(text.substr(from, to - from));
  };
  std::size_t kept = 0, start = 0;
  std::size_t last = std::string_view::npos;  // the end of the match before
  while (start <= text.size() && compiled_->search(text, start, found.get(), where_)) {
    const auto from = static_cast<std::size_t>(found->beg[0]), to = static_cast<std::size_t>(found->end[0]);
    if (from == to && to == last) {  // an empty match where one ended cuts nothing; look on, one character later
      start += start < text.size() ? character_at(text, start).length : 1;
      continue;
    }
    keep(kept, from);
    keep(from, to);
    kept = start = last = to;
  }
  keep(kept, text.size());
}

std::size_t Pattern::find(std::string_view text) const {
  const Region found = region();
  return compiled_->search(text, 0, found.get(), where_) ? static_cast<std::size_t>(found->beg[0]) : std::string_view::npos;
}

}  // namespace moetrt
