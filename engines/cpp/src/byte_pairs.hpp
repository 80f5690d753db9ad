// Byte pair encoding of one piece of text: neighbours are joined, the pair that was learned first before others.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace moetrt {

using Vocabulary = std::unordered_map<std::string, std::uint32_t>;

class BytePairs {
 public:
  // :param merges: pairs of tokens in the order of learning. :param whole_first: a piece that is a token is that token, whatever the merges make of it.
  // Throws Error: a merge's tokens, or what they make, are not in the vocabulary.
  BytePairs(Vocabulary vocabulary, const std::vector<std::pair<std::string, std::string>>& merges, bool whole_first, const std::string& where);

  // Adds the ids of `piece`. Bytes that the vocabulary lacks give none.
  void encode(std::string_view piece, std::vector<std::int64_t>& ids) const;

  [[nodiscard]] const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

 private:
  struct Merge {
    std::uint32_t rank, id;
  };
  [[nodiscard]] const Merge* merge(std::uint32_t left, std::uint32_t right) const;
  [[nodiscard]] std::optional<std::uint32_t> whole(std::string_view piece) const;

  Vocabulary vocabulary_;
  bool whole_first_;
  std::array<std::optional<std::uint32_t>, 256> bytes_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // left id, right id
};

}  // namespace moetrt
