#include <algorithm>
#include <exception>
#include <string>

#include "moetrt.h"
#include "moetrt/chain.hpp"
#include "moetrt/error.hpp"

struct moetrt_chain {
  moetrt::Chain chain;
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

}  // namespace

extern "C" {

int moetrt_open_runtime(const char* library) {
  return guarded([&] { moetrt::Runtime::open(library ? library : ""); });
}

int moetrt_load(const char* folder, int threads, moetrt_chain** chain) {
  return guarded([&] {
    require(folder && chain, "folder or chain");
    *chain = nullptr;
    *chain = new moetrt_chain{moetrt::Chain::load(folder, threads)};
  });
}

void moetrt_close(moetrt_chain* chain) { delete chain; }

int64_t moetrt_vocab(const moetrt_chain* chain) { return chain ? chain->chain.manifest().vocab : 0; }

int64_t moetrt_max_context(const moetrt_chain* chain) { return chain ? chain->chain.manifest().max_context : 0; }

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

const char* moetrt_error(void) { return last_error.c_str(); }
}
