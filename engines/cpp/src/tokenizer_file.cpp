#include "tokenizer_file.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>

#include "moetrt/error.hpp"

namespace moetrt {
namespace {

using Json = nlohmann::json;

constexpr const char* kOnlyPython = "Give --token-ids; `moetrt run` reads such a file with the tokenizers library.";
constexpr const char* kDamaged = "The file is damaged or was edited.";
// What a ByteLevel pre-tokenizer with use_regex cuts by: GPT-2's words.
constexpr const char* kWords = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string shown(const Json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";  // however deep
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// An object of the file, and where it stands: `tokenizer.json: model`.
class Node {
 public:
  Node(const Json& data, std::string where) : data_(data), where_(std::move(where)) {
    if (!data.is_object()) throw Error(where_ + " is " + shown(data) + ", where an object is expected.", kDamaged);
  }

  [[nodiscard]] const Json& at(const char* name) const {
    const auto found = data_.find(name);
    if (found == data_.end()) throw Error(where_ + " lacks '" + name + "'.", kDamaged);
    return *found;
  }

  [[nodiscard]] std::string text(const char* name) const { return typed(name, &Json::is_string, "text").get<std::string>(); }
  [[nodiscard]] bool flag(const char* name) const { return typed(name, &Json::is_boolean, "true or false").get<bool>(); }
  [[nodiscard]] const Json& list(const char* name) const { return typed(name, &Json::is_array, "a list"); }
  [[nodiscard]] Node object(const char* name) const { return {at(name), place(name)}; }
  [[nodiscard]] bool given(const char* name) const { return data_.contains(name) && !data_.at(name).is_null(); }

  // Refuses fields that are not among `known`: they may mean something.
  const Node& only(const std::set<std::string>& known) const {
    for (const auto& [name, value] : data_.items())
      if (!known.count(name)) throw Error(where_ + " has '" + name + "', which the C++ runtime does not know.", kOnlyPython);
    return *this;
  }

  // Refuses `name` where it is anything but `value`, null or absent.
  const Node& none_but(const char* name, const Json& value = nullptr) const {
    if (given(name) && data_.at(name) != value) throw unread(name, value.is_null() ? "null" : shown(value));
    return *this;
  }

  [[nodiscard]] Error unread(const char* name, const std::string& known) const {
    return Error(place(name) + " is " + shown(at(name)) + "; the C++ runtime reads " + known + ".", kOnlyPython);
  }

  [[nodiscard]] std::string place(const char* name) const { return where_ + (where_.ends_with(':') ? " " : ".") + name; }
  [[nodiscard]] const Json& data() const { return data_; }

 private:
  [[nodiscard]] const Json& typed(const char* name, bool (Json::*is)() const noexcept, const char* wanted) const {
    const Json& value = at(name);
    if (!(value.*is)()) throw Error(place(name) + " is " + shown(value) + ", where " + wanted + " is expected.", kDamaged);
    return value;
  }

  const Json& data_;
  std::string where_;
};

std::uint32_t token_id(const Json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > UINT32_MAX) throw Error(where + " is " + shown(value) + ", where a token id is expected.", kDamaged);
  return value.get<std::uint32_t>();
}

std::string numbered(const std::string& where, std::size_t number) { return where + "[" + std::to_string(number) + "]"; }

// The parts of a component: those of a Sequence, or the one that it is; none of null.
std::vector<Node> parts(const Node& root, const char* name, const char* list) {
  std::vector<Node> found;
  if (!root.given(name)) return found;
  const Node component = root.object(name);
  if (component.text("type") != "Sequence") return {component};
  component.only({"type", list});
  for (const Json& one : component.list(list)) found.emplace_back(one, numbered(component.place(list), found.size()));
  return found;
}

std::pair<std::string, std::string> read_merge(const Json& merge, const std::string& where) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) return {merge[0], merge[1]};
  if (merge.is_string()) {
    const std::string text = merge;
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) return {text.substr(0, space), text.substr(space + 1)};
  }
  throw Error(where + " is " + shown(merge) + ", where two tokens are expected.", kDamaged);
}

void read_model(const Node& model, TokenizerFile& made) {
  if (model.text("type") != "BPE") throw model.unread("type", "\"BPE\"");
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  model.none_but("dropout").none_but("unk_token").none_but("continuing_subword_prefix", "").none_but("end_of_word_suffix", "").none_but("byte_fallback", false);
  made.ignore_merges = model.given("ignore_merges") && model.flag("ignore_merges");
  for (const auto& [token, id] : model.object("vocab").data().items()) made.vocabulary[token] = token_id(id, model.place("vocab") + "." + token);
  for (const Json& merge : model.list("merges")) made.merges.push_back(read_merge(merge, numbered(model.place("merges"), made.merges.size())));
}

void read_added(const Node& root, TokenizerFile& made) {
  std::unordered_set<std::string> seen;
  std::uint64_t next = made.vocabulary.size();
  for (const Json& one : root.list("added_tokens")) {
    const Node node(one, numbered(root.place("added_tokens"), made.added.size()));
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    node.none_but("single_word", false).none_but("lstrip", false).none_but("rstrip", false);
    const AddedToken token{node.text("content"), token_id(node.at("id"), node.place("id")), node.flag("special"), node.flag("normalized")};
    if (token.content.empty() || !seen.insert(token.content).second)
      throw Error(node.place("content") + " is " + shown(token.content) + ", which is empty or there already.", kDamaged);
    // The library numbers added tokens itself; a file that says otherwise means other ids than it would give.
    const auto known = made.vocabulary.find(token.content);
    if (const std::uint64_t wanted = known == made.vocabulary.end() ? next : known->second; token.id != wanted)
      throw Error(node.place("id") + " is " + std::to_string(token.id) + ", where " + std::to_string(wanted) + " is expected.", kDamaged);
    next = std::max<std::uint64_t>(next, std::uint64_t{token.id} + 1);
    made.added.push_back(token);
  }
}

void require_distinct_ids(const TokenizerFile& made, const std::string& where) {
  std::unordered_map<std::uint32_t, const std::string*> tokens;
  const auto require = [&](const std::string& token, std::uint32_t id) {
    const std::string& first = *tokens.emplace(id, &token).first->second;
    if (first != token)
      throw Error(where + ": the id " + std::to_string(id) + " is that of " + shown(std::min(first, token)) + " and of " + shown(std::max(first, token)) + ".", kDamaged);
  };
  for (const auto& [token, id] : made.vocabulary) require(token, id);
  for (const AddedToken& token : made.added) require(token.content, token.id);
}

std::string read_split(const Node& split) {
  split.only({"type", "pattern", "behavior", "invert"}).none_but("invert", false);
  if (split.text("behavior") != "Isolated") throw split.unread("behavior", "\"Isolated\"");
  const Node pattern = split.object("pattern");
  pattern.only({"Regex"});
  return pattern.text("Regex");
}

void read_pre_tokenizer(const Node& root, TokenizerFile& made) {
  bool bytes = false;
  for (const Node& part : parts(root, "pre_tokenizer", "pretokenizers")) {
    const std::string type = part.text("type");
    if (bytes) throw part.unread("type", "nothing after \"ByteLevel\"");
    if (type == "Split") {
      made.splits.push_back(read_split(part));
    } else if (type == "Digits") {
      made.splits.emplace_back(part.only({"type", "individual_digits"}).flag("individual_digits") ? "\\p{N}" : "\\p{N}+");
    } else if (type == "ByteLevel") {
      part.only({"type", "add_prefix_space", "trim_offsets", "use_regex"}).none_but("add_prefix_space", false);
      if (!part.given("use_regex") || part.flag("use_regex")) made.splits.emplace_back(kWords);
      bytes = true;
    } else {
      throw part.unread("type", "\"Split\", \"Digits\" and \"ByteLevel\"");
    }
  }
  if (!bytes) throw Error(root.place("pre_tokenizer") + " has no ByteLevel; the C++ runtime reads byte-level tokenizers.", kOnlyPython);
}

void read_template(const Node& part, TokenizerFile& made) {
  part.only({"type", "single", "pair", "special_tokens"});
  const Node specials = part.object("special_tokens");
  std::size_t texts = 0;
  for (const Json& one : part.list("single")) {
    const Node piece(one, part.place("single"));
    if (piece.given("Sequence")) {
      ++texts;
      continue;
    }
    const std::string name = piece.object("SpecialToken").text("id");
    for (const Json& id : specials.object(name.c_str()).list("ids")) (texts ? made.after : made.before).push_back(token_id(id, specials.place(name.c_str())));
  }
  if (texts != 1) throw part.unread("single", "templates with one text");
}

void read_post_processor(const Node& root, TokenizerFile& made) {
  bool once = false;
  for (const Node& part : parts(root, "post_processor", "processors")) {
    const std::string type = part.text("type");
    if (type == "ByteLevel") continue;  // it moves offsets, not ids
    if (type != "TemplateProcessing" || once) throw part.unread("type", "\"ByteLevel\" and one \"TemplateProcessing\"");
    read_template(part, made);
    once = true;
  }
}

void read_decoder(const Node& root) {
  if (!root.given("decoder") || root.object("decoder").text("type") != "ByteLevel")
    throw Error(root.place("decoder") + " is " + (root.given("decoder") ? shown(root.at("decoder")) : "nothing") + "; the C++ runtime reads \"ByteLevel\".", kOnlyPython);
}

}  // namespace

TokenizerFile parse_tokenizer(const std::string& text, const std::string& where) {
  Json data;
  try {
    data = Json::parse(text);
  } catch (const Json::exception& cause) {
    throw Error(where + " is not valid JSON: " + cause.what() + ".", kDamaged);
  }
  const Node root(data, where + ":");
  root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "model", "post_processor", "decoder"});
  root.none_but("version", "1.0").none_but("truncation").none_but("padding");
  for (const Node& part : parts(root, "normalizer", "normalizers")) throw part.unread("type", "no normalizer");
  TokenizerFile made;
  read_model(root.object("model"), made);
  read_added(root, made);
  require_distinct_ids(made, where);
  read_pre_tokenizer(root, made);
  read_post_processor(root, made);
  read_decoder(root);
  return made;
}

}  // namespace moetrt
