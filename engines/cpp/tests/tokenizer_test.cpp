#include "moetrt/tokenizer.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <set>

#include "byte_pairs.hpp"
#include "moetrt/error.hpp"
#include "record.hpp"
#include "tokenizer_file.hpp"
#include "utf8.hpp"

using namespace moetrt;

namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

// The pair that was learned first, and of several such the leftmost, again and again.
std::vector<std::int64_t> naively(const std::string& piece, const Vocabulary& vocabulary, const Pairs& merges) {
  std::vector<std::string> tokens;
  for (const char byte : piece) tokens.emplace_back(1, byte);
  for (auto merge = merges.begin(); merge != merges.end();) {
    std::size_t place = 0;
    while (place + 1 < tokens.size() && std::pair(tokens[place], tokens[place + 1]) != *merge) ++place;
    if (place + 1 >= tokens.size()) {
      ++merge;
      continue;
    }
    tokens[place] += tokens[place + 1];
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    merge = merges.begin();
  }
  std::vector<std::int64_t> ids;
  for (const std::string& token : tokens) ids.push_back(vocabulary.at(token));
  return ids;
}

Tokenizer saved(const nlohmann::json& record) {
  const auto folder = std::filesystem::temp_directory_path() / "moetrt-tokenizer-test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << record.dump();
  return Tokenizer::load(folder);
}

}  // namespace

TEST_CASE("bytes that are no character are found, and replaced part by part") {
  CHECK(!first_invalid("aé深👩"));
  CHECK(first_invalid("ab\xff") == 2);
  CHECK(first_invalid("\xed\xa0\x80") == 0);       // a surrogate
  CHECK(first_invalid("a\xf4\x90\x80\x80") == 1);  // beyond U+10FFFF
  CHECK(first_invalid("\xc1\xbf") == 0);           // longer than need be
  CHECK(as_text("a\xe6\xb7") == "a\uFFFD");        // cut off: one
  CHECK(as_text("\xed\xa0\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(as_text("\xf0\x9f\x91\x41\xff") == "\uFFFDA\uFFFD");
}

TEST_CASE("every byte has a character of its own, and is it again") {
  std::set<std::string> seen;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string& spelled = byte_alphabet()[byte];
    CHECK(seen.insert(spelled).second);
    CHECK(bytes_of(spelled) == std::string(1, static_cast<char>(byte)));
  }
  CHECK(byte_alphabet()[' '] == "\u0120");
  CHECK(bytes_of("<｜User｜>") == "<｜User｜>");
}

TEST_CASE("pairs are joined as a naive loop joins them") {
  std::mt19937 chance(1);
  const auto below = [&](std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(chance); };
  for (int round = 0; round < 300; ++round) {
    Vocabulary vocabulary{{"a", 0}, {"b", 1}, {"c", 2}};
    std::vector<std::string> tokens{"a", "b", "c"};
    Pairs merges;
    for (int step = 0; step < 12; ++step) {
      const std::pair<std::string, std::string> merge{tokens[below(tokens.size())], tokens[below(tokens.size())]};
      const std::string made = merge.first + merge.second;
      if (std::find(merges.begin(), merges.end(), merge) != merges.end()) continue;
      if (vocabulary.emplace(made, static_cast<std::uint32_t>(tokens.size())).second) tokens.push_back(made);
      merges.push_back(merge);
    }
    std::string piece;
    for (std::size_t length = below(40); length--;) piece += "abc"[below(3)];
    std::vector<std::int64_t> ids;
    BytePairs(vocabulary, merges, false, "").encode(piece, ids);
    CHECK(ids == naively(piece, vocabulary, merges));
  }
}

TEST_CASE("tokens are their bytes; a character that is not whole is held back") {
  const Tokenizer tokenizer = saved(tokenizer_record());
  CHECK(tokenizer.decode(std::vector<std::int64_t>{0, 7, 8, 9, 4, 1, 77, -1}) == " abé<think>\uFFFDa");
  Streamer streamer(tokenizer);
  CHECK(streamer.add(7) == " ab");
  CHECK(streamer.add(4).empty());
  CHECK(streamer.add(5) == "é");
  CHECK(streamer.add(4).empty());
  CHECK(streamer.end() == "\uFFFD");
  CHECK(streamer.end().empty());
}

TEST_CASE("what would give other ids is named") {
  nlohmann::json record = tokenizer_record();
  record["pre_tokenizer"]["pretokenizers"][1]["type"] = "Metaspace";
  CHECK_THROWS_WITH_AS(parse_tokenizer(record.dump(), "t"),
                       "t: pre_tokenizer.pretokenizers[1].type is \"Metaspace\"; the C++ runtime reads \"Split\", \"Digits\" and \"ByteLevel\".", Error);
}

TEST_CASE("a part of a sequence that has no type is refused") {
  for (const auto& [part, list] : {std::pair("normalizer", "normalizers"), std::pair("pre_tokenizer", "pretokenizers")}) {
    nlohmann::json record = tokenizer_record();
    record[part][list] = nlohmann::json::parse("[{}]");
    CHECK_THROWS_WITH_AS(parse_tokenizer(record.dump(), "t"), (std::string("t: ") + part + "." + list + "[0] lacks 'type'.").c_str(), Error);
  }
}
