// A tokenizer.json: read or refused by an Error; what is read gives text of any ids, and ids of text by whatever patterns it has.
#include "moetrt/tokenizer.hpp"

#include <numeric>

#include "folder.hpp"
#include "moetrt/error.hpp"

using namespace moetrt;

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  Tokenizer::open_patterns(MOETRT_FUZZ_ONIGURUMA);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const Tokenizer tokenizer = Tokenizer::load(lay_out_tokenizer({reinterpret_cast<const char*>(data), size}), 0);
    std::vector<std::int64_t> ids(400);
    std::iota(ids.begin(), ids.end(), -2);
    static_cast<void>(tokenizer.decode(ids));
    Streamer streamer(tokenizer);
    for (const std::int64_t id : ids) streamer.add(id);
    streamer.end();
    static_cast<void>(tokenizer.encode("It's 12 na\xc3\xafve <think> ab</s>\n  123abab"));
  } catch (const Error&) {
  }
  return 0;
}
