#include <algorithm>
#include <exception>
#include <string>

#include "moetrt.h"
#include "moetrt/chain.hpp"
#include "moetrt/error.hpp"
#include "moetrt/tokenizer.hpp"

struct moetrt_chain {
  moetrt::Chain chain;
};

struct moetrt_tokenizer {
  moetrt::Tokenizer tokenizer;
};

namespace {

thread_local std::string last_error;

// Runs `work`; what it throws becomes the thread's last error.
template <typename Work>
int guarded(Work work) noexcept {
  try {
    work();
    return 0;
  } catch (const moetrt::Error& error) {
    last_error = error.hint().empty() ? error.what() : std::string(error.what()) + "\nHint: " + error.hint();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an unknown error";
  }
  return 1;
}

void require(bool good, const char* what) {
  if (!good) throw moetrt::Error(std::string(what) + " is NULL.");
}

// As much of `found` as there is room for.
template <typename List, typename Item>
void give(const List& found, Item* target, size_t room, size_t* size) {
  std::copy_n(found.begin(), std::min(room, found.size()), target);
  *size = found.size();
}

}  // namespace

extern "C" {

int moetrt_open_runtime(const char* library) {
  return guarded([&] { moetrt::Runtime::open(library ? library : ""); });
}

int moetrt_load(const char* folder, int threads, moetrt_chain** chain) { return moetrt_load_with_plugins(folder, threads, nullptr, chain); }

int moetrt_load_with_plugins(const char* folder, int threads, const char* plugins, moetrt_chain** chain) {
  return guarded([&] {
    require(folder && chain, "folder or chain");
    *chain = nullptr;
    *chain = new moetrt_chain{moetrt::Chain::load(folder, {threads, plugins ? plugins : ""})};
  });
}

void moetrt_close(moetrt_chain* chain) { delete chain; }

int64_t moetrt_vocab(const moetrt_chain* chain) { return chain ? chain->chain.manifest().vocab : 0; }

int64_t moetrt_max_context(const moetrt_chain* chain) { return chain ? chain->chain.manifest().max_context : 0; }

int64_t moetrt_bos(const moetrt_chain* chain) { return chain ? chain->chain.manifest().bos.value_or(-1) : -1; }

int moetrt_logits(moetrt_chain* chain, const int64_t* token_ids, size_t count, float* logits) {
  return guarded([&] {
    require(chain && (token_ids || !count) && logits, "an argument");
    const std::vector<float> found = chain->chain.logits({token_ids, count});
    std::copy(found.begin(), found.end(), logits);
  });
}

int moetrt_generate(moetrt_chain* chain, const int64_t* token_ids, size_t count, int64_t max_tokens, int ignore_eos, int64_t* tokens, size_t* made) {
  return guarded([&] {
    require(chain && (token_ids || !count) && tokens && made, "an argument");
    moetrt::Generation options;
    options.max_tokens = max_tokens;
    options.ignore_eos = ignore_eos != 0;
    const std::vector<int64_t> found = chain->chain.generate({token_ids, count}, options);
    std::copy(found.begin(), found.end(), tokens);
    *made = found.size();
  });
}

int moetrt_open_patterns(const char* library) {
  return guarded([&] { moetrt::Tokenizer::open_patterns(library ? library : ""); });
}

int moetrt_load_tokenizer(const char* folder, int64_t bos, moetrt_tokenizer** tokenizer) {
  return guarded([&] {
    require(folder && tokenizer, "folder or tokenizer");
    *tokenizer = nullptr;
    *tokenizer = new moetrt_tokenizer{moetrt::Tokenizer::load(folder, bos < 0 ? std::nullopt : std::optional(bos))};
  });
}

void moetrt_close_tokenizer(moetrt_tokenizer* tokenizer) { delete tokenizer; }

int moetrt_encode(const moetrt_tokenizer* tokenizer, const char* text, size_t bytes, int64_t* token_ids, size_t room, size_t* count) {
  return guarded([&] {
    require(tokenizer && (text || !bytes) && (token_ids || !room) && count, "an argument");
    give(tokenizer->tokenizer.encode({text, bytes}), token_ids, room, count);
  });
}

int moetrt_decode(const moetrt_tokenizer* tokenizer, const int64_t* token_ids, size_t count, char* text, size_t room, size_t* bytes) {
  return guarded([&] {
    require(tokenizer && (token_ids || !count) && (text || !room) && bytes, "an argument");
    give(tokenizer->tokenizer.decode({token_ids, count}), text, room, bytes);
  });
}

const char* moetrt_error(void) { return last_error.c_str(); }
}
