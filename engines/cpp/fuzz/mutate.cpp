// Three in four mutations are of the records as JSON, values and fields moved, lost and replaced: libFuzzer's own, of bytes, seldom leave JSON behind.
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

using Json = nlohmann::json;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t room);

namespace {

constexpr int kDeepest = 100;  // what is deeper is for the mutations of bytes

using Chance = std::minstd_rand;

std::size_t below(std::size_t limit, Chance& chance) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(chance); }

const Json& drawn(const Json& list, Chance& chance) { return *std::next(list.begin(), static_cast<std::ptrdiff_t>(below(list.size(), chance))); }

void collect(Json& value, std::vector<Json*>& found) {
  found.push_back(&value);
  if (value.is_structured())
    for (Json& inner : value) collect(inner, found);
}

// A value on a way down from the top: few large lists would else have nearly all draws.
Json& descend(Json& value, Chance& chance) {
  if (!value.is_structured() || value.empty() || below(4, chance) == 0) return value;
  return descend(const_cast<Json&>(drawn(value, chance)), chance);
}

const Json& odd(Chance& chance) {
  static const Json values = Json::parse(
      R"([null, true, false, 0, 1, 2, 3, -1, 64, 127, 128, 2147483647, 2147483648, 4294967295, 4294967296, 9223372036854775807, 18446744073709551615,
          1.5, 1e300, -0.0, "", "batch", "tokens", "context", "selected", "logits", "float16", "int64", "bfloat16", "launch", "all_reduce", "all_gather",
          "send", "receive", [], {}, [0], [[]], {"a": 1}, {"kind": "send", "values": ["logits"]}, {"kind": "receive", "values": []}])");
  return drawn(values, chance);
}

std::string mutated_text(std::string text) {
  const std::size_t size = text.size();
  text.resize(size + 16);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, text.size()));
  return text;
}

// A value of its own kind, near to it.
void nudge(Json& value, Chance& chance) {
  if (value.is_string())
    value = mutated_text(value.get<std::string>());
  else if (value.is_number_unsigned())
    value = value.get<std::uint64_t>() + (below(2, chance) ? 1 : -1);
  else
    value = odd(chance);
}

void lose_item(Json& value, Chance& chance) {
  if (!value.empty()) value.erase(std::next(value.begin(), static_cast<std::ptrdiff_t>(below(value.size(), chance))));
}

void gain_item(Json& value, const Json& item, const std::string& name, Chance& chance) {
  if (value.is_array())
    value.insert(std::next(value.begin(), static_cast<std::ptrdiff_t>(below(value.size() + 1, chance))), item);
  else
    value[name] = item;
}

// Two items change places: names keep theirs.
void swap_items(Json& value, Chance& chance) {
  if (value.size() > 1) std::swap(const_cast<Json&>(drawn(value, chance)), const_cast<Json&>(drawn(value, chance)));
}

// Another value of the record, of the same kind where one is drawn soon.
Json like(const Json& one, const std::vector<Json*>& all, Chance& chance) {
  for (int times = 0; times < 20; ++times)
    if (const Json& other = *all[below(all.size(), chance)]; other.type() == one.type()) return other;
  return odd(chance);
}

void mutate(Json& record, Chance& chance) {
  std::vector<Json*> all;
  collect(record, all);
  Json& one = below(2, chance) ? descend(record, chance) : *all[below(all.size(), chance)];
  const Json name = like(Json(""), all, chance);
  const std::string named = name.is_string() ? name.get<std::string>() : "a";
  const std::size_t way = below(one.is_structured() ? 7 : 3, chance);
  if (way == 0) return nudge(one, chance);
  if (way == 1) return void(one = odd(chance));
  if (way == 2) return void(one = like(one, all, chance));
  if (way == 3) return lose_item(one, chance);
  if (way == 4) return swap_items(one, chance);
  if (way == 5 && !one.empty()) return gain_item(one, Json(drawn(one, chance)), named, chance);
  gain_item(one, odd(chance), named, chance);
}

// One of the texts, between NULs, mutated as JSON. Throws: it is none, or too deep.
std::string mutated(const std::string& texts, Chance& chance) {
  std::vector<std::size_t> starts{0};
  for (std::size_t at = texts.find('\0'); at != std::string::npos; at = texts.find('\0', at + 1)) starts.push_back(at + 1);
  const std::size_t start = starts[below(starts.size(), chance)], end = std::min(texts.find('\0', start), texts.size());
  Json record = Json::parse(texts.substr(start, end - start), [](int depth, Json::parse_event_t, const Json&) {
    if (depth > kDeepest) throw std::length_error("deep");
    return true;
  });
  do mutate(record, chance);
  while (below(4, chance) == 0);
  return texts.substr(0, start) + record.dump(-1, ' ', false, Json::error_handler_t::replace) + texts.substr(end);
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t room, unsigned seed) {
  Chance chance(seed);
  try {
    const std::string made = below(4, chance) ? mutated({reinterpret_cast<const char*>(data), size}, chance) : "";
    if (!made.empty() && made.size() <= room) return std::memcpy(data, made.data(), made.size()), made.size();
  } catch (const std::exception&) {
  }
  return LLVMFuzzerMutate(data, size, room);
}
