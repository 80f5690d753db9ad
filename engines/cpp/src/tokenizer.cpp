#include "moetrt/tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <mutex>
#include <unordered_map>

#include "byte_pairs.hpp"
#include "moetrt/error.hpp"
#include "patterns.hpp"
#include "tokenizer_file.hpp"
#include "utf8.hpp"

namespace moetrt {
namespace {

// Text that is a token by itself, or that is still to be cut.
struct Piece {
  std::string_view text;
  std::optional<std::uint32_t> token;
};

// Added tokens, found in text: of those that begin first, the longest.
class Finder {
 public:
  void add(const AddedToken& token) {
    tokens_.emplace(token.content, token.id);
    lengths_.push_back(token.content.size());
    std::sort(lengths_.begin(), lengths_.end(), std::greater<>());
    lengths_.erase(std::unique(lengths_.begin(), lengths_.end()), lengths_.end());
    beginnings_[static_cast<unsigned char>(token.content[0])] = true;
  }

  [[nodiscard]] std::vector<Piece> cut(const std::vector<Piece>& pieces) const {
    std::vector<Piece> made;
    for (const Piece& piece : pieces) piece.token ? made.push_back(piece) : cut(piece.text, made);
    return made;
  }

 private:
  void cut(std::string_view text, std::vector<Piece>& made) const {
    std::size_t kept = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto found = token_at(text.substr(at));
      if (found == tokens_.end()) {
        ++at;
        continue;
      }
      if (kept < at) made.push_back({text.substr(kept, at - kept), std::nullopt});
      made.push_back({text.substr(at, found->first.size()), found->second});
      kept = at += found->first.size();
    }
    if (kept < text.size()) made.push_back({text.substr(kept), std::nullopt});
  }

  [[nodiscard]] Vocabulary::const_iterator token_at(std::string_view text) const {
    if (!beginnings_[static_cast<unsigned char>(text[0])]) return tokens_.end();
    for (const std::size_t length : lengths_) {
      if (length > text.size()) continue;
      if (const auto found = tokens_.find(std::string(text.substr(0, length))); found != tokens_.end()) return found;
    }
    return tokens_.end();
  }

  Vocabulary tokens_;
  std::vector<std::size_t> lengths_;  // the longest first
  std::array<bool, 256> beginnings_{};
};

std::string read(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::is_regular_file(path))
    throw Error(folder.string() + " has no tokenizer.json.",
                "Give token ids (--token-ids, or token_ids in a .jsonl of prompts); or put a tokenizer.json beside the checkpoint's config.json and export again (of a "
                "tiktoken.model, such as Kimi's, transformers' TikTokenConverter makes one).");
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error("cannot read " + path.string() + ".");
  return text;
}

}  // namespace

struct Tokenizer::Parts {
  std::string where;
  std::optional<std::int64_t> bos;
  BytePairs pairs;
  Finder literal, normalized;
  std::vector<std::string> splits;
  std::vector<std::int64_t> before, after;
  std::unordered_map<std::int64_t, std::string> bytes;  // of each token that text shows
  mutable std::once_flag compiling;
  mutable std::vector<Pattern> patterns;

  Parts(TokenizerFile file, std::string named, std::optional<std::int64_t> first)
      : where(std::move(named)),
        bos(first),
        pairs(std::move(file.vocabulary), file.merges, file.ignore_merges, where),
        splits(std::move(file.splits)),
        before(std::move(file.before)),
        after(std::move(file.after)) {
    for (const auto& [token, id] : pairs.vocabulary()) bytes.emplace(id, bytes_of(token));
    for (const AddedToken& token : file.added) {
      (token.normalized ? normalized : literal).add(token);
      if (token.special)
        bytes.erase(token.id);
      else
        bytes.emplace(token.id, bytes_of(token.content));
    }
  }

  // Adds the ids of text without added tokens.
  void encode(std::string_view text, std::vector<std::int64_t>& ids) const {
    std::vector<std::string_view> pieces{text}, finer;
    for (const Pattern& pattern : patterns) {
      finer.clear();
      for (const std::string_view piece : pieces) pattern.cut(piece, finer);
      std::swap(pieces, finer);
    }
    for (const std::string_view piece : pieces) pairs.encode(piece, ids);
  }

  // The bytes of a token; empty where text does not show it.
  [[nodiscard]] std::string_view shown(std::int64_t token) const {
    const auto found = bytes.find(token);
    return found == bytes.end() ? std::string_view{} : found->second;
  }

  void compile() const {
    std::call_once(compiling, [this] {
      std::vector<Pattern> made;
      made.reserve(splits.size());
      for (const std::string& split : splits) made.emplace_back(split, where + ": pre_tokenizer's pattern " + std::to_string(made.size()));
      patterns = std::move(made);
    });
  }
};

Tokenizer::Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

Tokenizer Tokenizer::load(const std::filesystem::path& folder, std::optional<std::int64_t> bos) {
  const std::string where = (folder / "tokenizer.json").string();
  return Tokenizer(std::make_shared<const Parts>(parse_tokenizer(read(folder), where), where, bos));
}

void Tokenizer::open_patterns(const std::string& library) { moetrt::open_patterns(library); }

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  if (const auto at = first_invalid(text)) throw Error("the text is not UTF-8: its byte " + std::to_string(*at) + " belongs to no character.");
  if (text.size() > INT32_MAX) throw Error("the text has " + std::to_string(text.size()) + " bytes, more than are read at once.");
  parts_->compile();
  require_known_characters(text);
  std::vector<std::int64_t> ids = parts_->before;
  if (!text.empty())
    for (const Piece& piece : parts_->normalized.cut(parts_->literal.cut({{text, std::nullopt}}))) piece.token ? ids.push_back(*piece.token) : parts_->encode(piece.text, ids);
  ids.insert(ids.end(), parts_->after.begin(), parts_->after.end());
  if (parts_->bos && (ids.empty() || ids[0] != *parts_->bos)) ids.insert(ids.begin(), *parts_->bos);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int64_t> token_ids) const {
  std::string bytes;
  for (const std::int64_t token : token_ids) bytes += parts_->shown(token);
  return as_text(bytes);
}

Streamer::Streamer(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

std::string Streamer::add(std::int64_t token) {
  pending_ += tokenizer_.parts_->shown(token);
  std::string text = as_text(pending_);
  if (text.ends_with(kReplacement)) return {};
  pending_.clear();
  return text;
}

std::string Streamer::end() { return as_text(std::exchange(pending_, {})); }

}  // namespace moetrt
