// TensorRT's session against libraries that stand for TensorRT's, CUDA's and NCCL's: what it calls, in which order, and that what it binds is what runs.
#include <doctest/doctest.h>

#include <fstream>
#include <string>
#include <vector>

#include "tensorrt_communicator.hpp"
#include "tensorrt_engines.hpp"

namespace {

Tokens sums(Tokens tokens, int more) {
  Tokens made;
  for (int number = 0; number < more; ++number) {
    std::int64_t sum = 0;
    for (const std::int64_t token : tokens) sum += token;
    tokens.push_back(sum % kVocab);
    made.push_back(tokens.back());
  }
  return made;
}

Tokens generate(Chain& chain, const Tokens& prompt, std::int64_t tokens) { return chain.generate(prompt, {.max_tokens = tokens, .sampling = {}, .ignore_eos = true}); }

const Tokens kPrompt{3, 17, 4, 9, 5};

}  // namespace

TEST_CASE("prompts run in the one profile, single tokens in the other, caches in place") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  CHECK(calls() == std::vector<std::string>{"deserialize", "scratch 4096", "scratch 4096"});
  CHECK(generate(chain, kPrompt, 8) == sums(kPrompt, 8));
  const auto told = calls();
  CHECK(count(told, "enqueue 0") == 1);
  CHECK(count(told, "bind 0 a.cache") == 1);
  CHECK(count(told, "bind 1 a.cache") == 1);
  CHECK(count(told, "bind 1 a.cache.out") == 1);
}

TEST_CASE("the second step of one token is captured, those after it are replayed") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  CHECK(generate(chain, kPrompt, 8) == sums(kPrompt, 8));
  auto told = calls();
  CHECK(count(told, "enqueue 1") == 2);  // once to run, once to be captured
  CHECK(count(told, "instantiate") == 1);
  CHECK(count(told, "replay") == 6);
  CHECK(generate(chain, {1, 2, 3}, 8) == sums({1, 2, 3}, 8));  // the same cache: nothing is bound or captured again but the prompt's
  told = calls();
  CHECK(count(told, "bind 1 a.cache") == 0);
  CHECK(count(told, "instantiate") == 0);
  CHECK(count(told, "replay") == 7);
}

TEST_CASE("another cache, of more rows, is bound and captured anew") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  CHECK(generate(chain, kPrompt, 6) == sums(kPrompt, 6));
  chain.cache(2, kContext);
  calls();
  CHECK(generate(chain, kPrompt, 6) == sums(kPrompt, 6));
  const auto told = calls();
  CHECK(count(told, "bind 1 a.cache") == 1);
  CHECK(count(told, "instantiate") == 1);
}

TEST_CASE("rows of several lengths at once") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  const std::vector<Tokens> prompts{kPrompt, {7}, {1, 2, 3, 4, 5, 6, 7, 8}};
  const auto made = chain.generate_batch(prompts, {.max_tokens = 9, .sampling = {}, .ignore_eos = true});
  for (std::size_t row = 0; row < prompts.size(); ++row) CHECK(made.at(row) == sums(prompts[row], 9));
}

TEST_CASE("logits of every token") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  const std::vector<float> logits = chain.logits(kPrompt);
  REQUIRE(logits.size() == kPrompt.size() * kVocab);
  for (std::size_t end = 1; end <= kPrompt.size(); ++end) CHECK(logits[(end - 1) * kVocab + sums({kPrompt.begin(), kPrompt.begin() + end}, 1).front()] == 1.0f);
}

TEST_CASE("what the engine is not is told by name") {
  const Engines engines(1);
  const fs::path manifest = engines.folder() / "rank-00/manifest.json";
  const auto changed = [&](const std::function<void(json&)>& change) {
    json data = json::parse(std::ifstream(manifest));
    const json whole = data;
    change(data["assembly"]["signatures"]["rank"]);
    Engines::change(manifest, data);
    const std::string told = refusal(engines.folder());
    Engines::change(manifest, whole);
    return told;
  };
  CHECK(changed([](json& signature) { signature["inputs"][0]["name"] = "ids"; }).find("rank.engine has no input 'ids', which its manifest names.") != std::string::npos);
  CHECK(changed([](json& signature) { signature["inputs"][0]["dtype"] = "float16"; }).find("has the input 'token_ids' in another dtype than float16.") != std::string::npos);
  CHECK(changed([](json& signature) { signature["inputs"].erase(2); }).find("has 6 inputs and outputs, its manifest 5.") != std::string::npos);
  std::ofstream(engines.folder() / "rank-00/rank.engine") << "damaged of the same size"[0];
  json data = json::parse(std::ifstream(manifest));
  data["files"]["rank.engine"]["bytes"] = 1;
  Engines::change(manifest, data);
  CHECK(refusal(engines.folder()) == "TensorRT cannot open " + (engines.folder() / "rank-00/rank.engine").string() + ": this is no plan.");
}

TEST_CASE("rows beyond every profile are told with what the profiles take") {
  const Engines engines(1);
  Chain chain = Chain::load(engines.folder());
  Array ids("int64", {5, 1}), start("int64", {5}), select("int64", {5, 1});
  try {
    chain.step(ids, start, select, chain.cache(5, 8));
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("has no profile for this step; profile 0 takes a.cache from 1x64x1 to 4x64x1, not 5x64x1; profile 1 takes") != std::string::npos);
  }
  CHECK(generate(chain, kPrompt, 4) == sums(kPrompt, 4));
}

TEST_CASE("a rank that TensorRT does not run is told, and the chain lives on") {
  const Engines engines(1, 3);
  Chain chain = Chain::load(engines.folder());
  CHECK_THROWS_AS(generate(chain, kPrompt, 8), Error);
  CHECK(generate(chain, kPrompt, 8) == sums(kPrompt, 8));
}

TEST_CASE("too few devices are told") {
  const Engines engines(1);
  fake<decltype(fake_devices)>("fake_devices")(0);
  CHECK(refusal(engines.folder()).find("holds engines of 1 tensor rank(s), a CUDA device each; there are 0 here.") != std::string::npos);
}

TEST_CASE("ranks meet inside their graphs: a communicator each, for each context, given by all at once") {
  const Engines engines(4);
  Chain chain = Chain::load(engines.folder());
  auto told = calls();
  CHECK(count(told, "ncclCommInitAll 0 1 2 3") == 1);
  for (int rank = 0; rank < 4; ++rank) CHECK(count(told, "setCommunicator " + std::to_string(rank)) == 2);
  CHECK(generate(chain, kPrompt, 12) == sums(kPrompt, 12));
  told = calls();
  CHECK(count(told, "instantiate") == 4);
  CHECK(count(told, "replay") == 4 * 10);
}

TEST_CASE("a rank that fails releases those that wait for it; then communicators and contexts are made anew") {
  const Engines engines(3, 4);
  Chain chain = Chain::load(engines.folder());
  calls();
  try {
    generate(chain, kPrompt, 12);
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("rank-02") != std::string::npos);
  }
  CHECK(count(calls(), "ncclCommAbort 0") == 1);
  CHECK(generate(chain, kPrompt, 12) == sums(kPrompt, 12));
  const auto told = calls();
  CHECK(count(told, "ncclCommInitAll 0 1 2") == 1);
  CHECK(count(told, "setCommunicator 0") == 2);
}

TEST_CASE("fewer devices than tensor ranks are refused") {
  const Engines engines(2);
  fake<decltype(fake_devices)>("fake_devices")(1);
  CHECK(refusal(engines.folder()).find("a CUDA device each; there are 1 here.") != std::string::npos);
}

#if NV_TENSORRT_MAJOR < 11
// Older headers have no communicators: the library's own file says so, and here its place is taken by these.
namespace moetrt {
bool ranks_can_meet() noexcept { return true; }
bool set_communicator(nvinfer1::IExecutionContext& context, void* communicator) noexcept {
  return fake<decltype(fake_set_communicator)>("fake_set_communicator")(&context, communicator);
}
}  // namespace moetrt
#endif
