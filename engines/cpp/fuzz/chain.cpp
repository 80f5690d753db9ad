// What Chain makes of a folder's records: opened and walked over sessions that give zeros, or refused by an Error.
#include "moetrt/chain.hpp"

#include <cstdlib>
#include <optional>

#include "folder.hpp"
#include "moetrt/error.hpp"
#include "zeros.hpp"

using namespace moetrt;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::vector<std::int64_t> prompt{0, 0, 0};
  std::optional<Chain> chain;
  try {
    chain.emplace(Chain::load(lay_out({reinterpret_cast<const char*>(data), size}), std::make_unique<ZerosOpener>(), size % 2 == 0));
    if (chain->logits(prompt).size() != prompt.size() * static_cast<std::size_t>(chain->manifest().vocab)) std::abort();
    chain->generate_batch(std::vector<std::vector<std::int64_t>>{prompt, {0}}, {.max_tokens = 2, .sampling = {}, .ignore_eos = true});
  } catch (const Error&) {
  }
  return chain ? 0 : -1;  // what is not a chain is not kept to begin from: most of its children would be none either
}
