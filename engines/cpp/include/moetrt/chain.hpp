// The ranks of an engine set as one model: each walks its schedule up to a collective in turn.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moetrt/array.hpp"
#include "moetrt/manifest.hpp"
#include "moetrt/sampler.hpp"
#include "moetrt/session.hpp"

namespace moetrt {

// The latent cache: one buffer a layer and rank, read and written in place.
struct Cache {
  std::int64_t batch = 0;
  std::int64_t context = 0;
  std::map<int, States> ranks;  // rank → state input → buffer
  States joined;                // the same buffers, as a joined graph names them
};

struct Generation {
  std::int64_t max_tokens = 64;
  Sampling sampling;
  bool ignore_eos = false;
};

class Chain {
 public:
  // Opens the engines in `folder`.
  // Throws Error: ranks are missing, damaged or not made for each other, the backend does not run here, or the library of kernels is not that of the engines.
  static Chain load(const std::filesystem::path& folder, const LoadOptions& options);

  // The same with nothing but threads to say.
  static Chain load(const std::filesystem::path& folder, int threads = 0);

  // The same, by an opener of the caller's. :param joined: let ranks run as the joined graph, where there is one.
  static Chain load(const std::filesystem::path& folder, std::unique_ptr<Opener> opener, bool joined);

  Chain(Chain&&) noexcept;
  ~Chain();

  // Logits of every token, from an empty cache. *Shape:* float32 (tokens, vocab)
  std::vector<float> logits(std::span<const std::int64_t> token_ids);

  // New tokens after a prompt; the end-of-sequence token ends them and is not among them.
  // :param each: called with each token as soon as it is known.
  std::vector<std::int64_t> generate(std::span<const std::int64_t> token_ids, const Generation& options = {}, const std::function<void(std::int64_t)>& each = {});

  // New tokens of each of several prompts, which may differ in length; each row is what it would be alone.
  // :param each: called with a row and its next token, row by row, as soon as they are known.
  std::vector<std::vector<std::int64_t>> generate_batch(std::span<const std::vector<std::int64_t>> prompts, const Generation& options = {},
                                                        const std::function<void(std::size_t, std::int64_t)>& each = {});

  // Logits of the selected new tokens, whose latents the cache holds afterwards.
  // :param token_ids: int64 (batch, tokens), rows padded on the right. :param start: int64 (batch). :param select: int64 (batch, selected)
  // :returns: float32 (batch, selected, vocab); the next step writes over it.
  Array step(const Array& token_ids, const Array& start, const Array& select, Cache& cache);

  // A cache for `batch` rows of up to `tokens` tokens; the last one is used again where it fits.
  Cache& cache(std::int64_t batch, std::int64_t tokens);

  [[nodiscard]] const Manifest& manifest() const;

 private:
  struct Parts;
  // Logits after each prompt's last token. *Shape:* float32 (rows, vocab)
  Array prefill(std::span<const std::vector<std::int64_t>> prompts, Cache& cache);
  explicit Chain(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace moetrt
