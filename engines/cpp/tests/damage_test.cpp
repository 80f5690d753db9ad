// Damaged records, drawn at random from a fixed seed: refused or read, never a crash (run under sanitizers in CI).
#include <doctest/doctest.h>

#include <random>
#include <string>

#include "moetrt/error.hpp"
#include "moetrt/manifest.hpp"
#include "record.hpp"
#include "tokenizer_file.hpp"

using namespace moetrt;

namespace {

constexpr int kRounds = 20000;

// One to four bytes overwritten, dropped, doubled or cut off.
std::string damaged(std::string text, std::mt19937& chance) {
  const auto below = [&](std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit ? limit - 1 : 0)(chance); };
  for (std::size_t times = 1 + below(4); times-- && !text.empty();) {
    const std::size_t at = below(text.size());
    switch (below(5)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        text.insert(at, text.substr(at, 1 + below(8)));
        break;
      case 3:
        text.resize(at);
        break;
      default:
        text[at] = "0123456789-e.\"{}[],:"[below(20)];
    }
  }
  return text;
}

// How many damaged forms of `whole` are refused. `read` takes a text.
template <typename Read>
int refusals(const std::string& whole, Read read) {
  std::mt19937 chance(7);
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    try {
      read(damaged(whole, chance));
    } catch (const Error&) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace

TEST_CASE("damaged records are refused or read, and nothing else") {
  nlohmann::json whole = record();
  whole["options"]["plugins"] = plugins_record();
  CHECK(refusals(whole.dump(), [](const std::string& text) { parse_manifest(text, "manifest.json"); }) > kRounds / 2);
}

TEST_CASE("damaged tokenizers are refused or read, and nothing else") {
  const auto read = [](const std::string& text) {
    TokenizerFile file = parse_tokenizer(text, "tokenizer.json");
    const BytePairs pairs(std::move(file.vocabulary), file.merges, file.ignore_merges, "tokenizer.json");
    std::vector<std::int64_t> ids;
    pairs.encode(" abab\xc3\xa9", ids);
  };
  CHECK(refusals(tokenizer_record().dump(), read) > kRounds / 2);
}

TEST_CASE("records as deep as memory are refused") {
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  CHECK_THROWS_WITH_AS(parse_manifest(R"({"kind": )" + deep + "}", "m"), "m is nested deeper than 64 objects.", Error);
  std::string text = tokenizer_record().dump();
  const std::string before = "\"truncation\":null";
  text.replace(text.find(before), before.size(), "\"truncation\":" + deep);
  CHECK_THROWS_WITH_AS(parse_tokenizer(text, "t"), "t: truncation is a list; the C++ runtime reads null.", Error);
}
