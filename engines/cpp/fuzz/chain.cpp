// What Chain makes of a folder's records: opened and walked over sessions that give zeros, or refused by an Error.
#include "moetrt/chain.hpp"

#include <cstdlib>

#include "folder.hpp"
#include "moetrt/error.hpp"
#include "zeros.hpp"

using namespace moetrt;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::vector<std::int64_t> prompt{0, 0, 0};
  try {
    Chain chain = Chain::load(lay_out({reinterpret_cast<const char*>(data), size}), std::make_unique<ZerosOpener>(), size % 2 == 0);
    if (chain.logits(prompt).size() != prompt.size() * static_cast<std::size_t>(chain.manifest().vocab)) std::abort();
    chain.generate_batch(std::vector<std::vector<std::int64_t>>{prompt, {0}}, {.max_tokens = 2, .sampling = {}, .ignore_eos = true});
  } catch (const Error&) {
  }
  return 0;
}
