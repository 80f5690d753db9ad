// What a chain makes of damaged records: an Error, whatever they say, never memory that is not its own.
#include "moetrt/chain.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <vector>

#include "moetrt/error.hpp"
#include "record.hpp"
#include "zeros.hpp"

using namespace moetrt;
using nlohmann::json;

namespace {

// A set of these ranks, each with its graph.
std::filesystem::path saved(std::vector<json> ranks) {
  const auto folder = std::filesystem::temp_directory_path() / "moetrt-chain-test";
  std::filesystem::remove_all(folder);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto place = folder / ("rank-0" + std::to_string(rank));
    std::filesystem::create_directories(place);
    ranks[rank]["rank"] = rank;
    std::ofstream(place / "rank.onnx") << "abc";
    std::ofstream(place / "manifest.json") << ranks[rank].dump();
  }
  return folder;
}

Chain opened(std::vector<json> ranks) { return Chain::load(saved(std::move(ranks)), std::make_unique<ZerosOpener>(), true); }

json& signature(json& data) { return data["assembly"]["signatures"]["rank"]; }

// One rank's record, with all inputs that a graph has, after `change`.
json changed(const std::function<void(json&)>& change) {
  json data = record();
  signature(data)["inputs"].push_back({{"name", "start"}, {"dtype", "int64"}, {"shape", {"batch"}}});
  signature(data)["inputs"].push_back({{"name", "select"}, {"dtype", "int64"}, {"shape", {"batch", "selected"}}});
  change(data);
  return data;
}

// What a chain of one rank says of a record with this change, opened, asked for logits and for two tokens.
std::string refusal(const std::function<void(json&)>& change) {
  const std::vector<std::int64_t> prompt{0, 0, 0};
  try {
    Chain chain = opened({changed(change)});
    chain.logits(prompt);
    chain.generate(prompt, {.max_tokens = 2, .sampling = {}, .ignore_eos = true});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

const char* const kLogits = "the engines gave logits of another size than their vocabulary's.";

}  // namespace

TEST_CASE("a chain walks what was recorded") {
  CHECK(refusal([](json&) {}).empty());
  Chain chain = opened({changed([](json&) {})});
  CHECK(chain.logits(std::vector<std::int64_t>{0, 0, 0}).size() == 3 * 32);
}

TEST_CASE("prompts go through in chunks, which rows side by side share") {
  const json data = changed([](json& record) { record["max_context"] = 640; });
  std::vector<Dims> seen;
  Chain chain = Chain::load(saved({data}), std::make_unique<ZerosOpener>(&seen), true);
  const auto row = [](std::size_t tokens) { return std::vector<std::int64_t>(tokens, 0); };
  chain.logits(row(600));
  CHECK(seen == std::vector<Dims>{{1, 256}, {1, 256}, {1, 88}});
  seen.clear();
  chain.generate_batch(std::vector<std::vector<std::int64_t>>{row(200), row(7), row(90)}, {.max_tokens = 2, .sampling = {}, .ignore_eos = true});
  CHECK(seen == std::vector<Dims>{{3, 85}, {3, 85}, {3, 30}, {3, 1}});
}

TEST_CASE("logits of another size or dtype than the vocabulary's are refused, before memory for them is asked for") {
  CHECK(refusal([](json& data) { signature(data)["outputs"][0]["shape"][2] = 31; }) == kLogits);
  CHECK(refusal([](json& data) { signature(data)["outputs"][0]["shape"][1] = 3; }) == kLogits);  // right for the prompt, not for a step
  CHECK(refusal([](json& data) { signature(data)["outputs"][0]["dtype"] = "float16"; }) == kLogits);
  CHECK(refusal([](json& data) { data["config"]["vocab"] = 2147483647; }) == kLogits);
}

TEST_CASE("the last stage has no one to send to") {
  CHECK(refusal([](json& data) { data["assembly"]["steps"].push_back({{"kind", "send"}, {"values", {"logits"}}}); }).find("sends from the last stage") != std::string::npos);
}

TEST_CASE("a graph without a signature is refused, and a signature without a graph") {
  CHECK(refusal([](json& data) { data["assembly"]["graphs"]["other"] = "rank.onnx"; }).find("'other'") != std::string::npos);
  CHECK(refusal([](json& data) { data["assembly"]["signatures"]["other"] = signature(data); }).find("'other'") != std::string::npos);
}

TEST_CASE("a state of two graphs is refused: it has one buffer, of one shape") {
  CHECK(refusal([](json& data) {
          data["assembly"]["graphs"]["other"] = "rank.onnx";
          data["assembly"]["signatures"]["other"] = signature(data);
        }).find("the state 'a.cache' twice") != std::string::npos);
}

TEST_CASE("ranks are held against the schedule of their stage, whatever they say of the plan") {
  const json first = changed([](json& data) { data["plan"]["tensor"] = 2; });
  const json other = changed([](json& data) { data["assembly"]["steps"] = json::array(); });
  CHECK_THROWS_WITH_AS(opened({first, other}), doctest::Contains("has another schedule than the ranks of its stage."), Error);
}
