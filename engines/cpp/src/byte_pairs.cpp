#include "byte_pairs.hpp"

#include <queue>

#include "moetrt/error.hpp"
#include "utf8.hpp"

namespace moetrt {
namespace {

constexpr std::size_t kNone = SIZE_MAX;

std::uint64_t pair_key(std::uint32_t left, std::uint32_t right) noexcept { return static_cast<std::uint64_t>(left) << 32 | right; }

// A token of the piece so far, in a list of them; joined into its left neighbour it is gone.
struct Symbol {
  std::uint32_t id;
  std::size_t left, right;
  bool gone = false;
};

// The symbol at `place` could be joined with its right neighbour into `id`.
struct Candidate {
  std::uint32_t rank, id;
  std::size_t place;
};

struct Later {
  bool operator()(const Candidate& one, const Candidate& other) const noexcept { return one.rank != other.rank ? one.rank > other.rank : one.place > other.place; }
};

}  // namespace

BytePairs::BytePairs(Vocabulary vocabulary, const std::vector<std::pair<std::string, std::string>>& merges, bool whole_first, const std::string& where)
    : vocabulary_(std::move(vocabulary)), whole_first_(whole_first) {
  const auto known = [&](const std::string& token) {
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end()) throw Error(where + ": model.merges has '" + token + "', which model.vocab lacks.", "The file is damaged.");
    return found->second;
  };
  for (unsigned byte = 0; byte < 256; ++byte)
    if (const auto found = vocabulary_.find(byte_alphabet()[byte]); found != vocabulary_.end()) bytes_[byte] = found->second;
  merges_.reserve(merges.size());
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    merges_[pair_key(known(left), known(right))] = {rank, known(left + right)};
  }
}

const BytePairs::Merge* BytePairs::merge(std::uint32_t left, std::uint32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::optional<std::uint32_t> BytePairs::whole(std::string_view piece) const {
  std::string spelled;
  for (const char byte : piece) spelled += byte_alphabet()[static_cast<unsigned char>(byte)];
  const auto found = vocabulary_.find(spelled);
  return found == vocabulary_.end() ? std::nullopt : std::optional(found->second);
}

void BytePairs::encode(std::string_view piece, std::vector<std::int64_t>& ids) const {
  if (whole_first_)
    if (const auto token = whole(piece)) return ids.push_back(*token);
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char byte : piece)
    if (const auto id = bytes_[static_cast<unsigned char>(byte)]) symbols.push_back({*id, symbols.size() - 1, symbols.size() + 1});
  if (symbols.empty()) return;
  symbols.back().right = kNone;  // the first one's left is kNone already

  std::priority_queue<Candidate, std::vector<Candidate>, Later> candidates;
  const auto consider = [&](std::size_t place) {
    const std::size_t right = place == kNone ? kNone : symbols[place].right;
    if (right == kNone) return;
    if (const Merge* found = merge(symbols[place].id, symbols[right].id)) candidates.push({found->rank, found->id, place});
  };
  for (std::size_t place = 0; place < symbols.size(); ++place) consider(place);
  while (!candidates.empty()) {
    const Candidate next = candidates.top();
    candidates.pop();
    Symbol& symbol = symbols[next.place];
    if (symbol.gone || symbol.right == kNone) continue;
    Symbol& right = symbols[symbol.right];
    const Merge* still = merge(symbol.id, right.id);
    if (!still || still->id != next.id) continue;  // one of the two has become another token since
    symbol.id = next.id;
    right.gone = true;
    symbol.right = right.right;
    if (symbol.right != kNone) symbols[symbol.right].left = next.place;
    consider(symbol.left);
    consider(next.place);
  }
  for (std::size_t place = 0; place != kNone; place = symbols[place].right) ids.push_back(symbols[place].id);
}

}  // namespace moetrt
