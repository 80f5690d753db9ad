// Attention in the latent space over a cache of latents, from the projections to what the output matrix reads: the op moetrt.LatentAttention
// (arXiv 2405.04434 section 2.1, in the absorbed form).
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear.hpp"
#include "packed.hpp"

namespace moetrt::ops {

struct LatentAttention {
  std::size_t heads = 0, nope = 0, rope = 0;
  std::size_t latent = 0, value = 0;           // a multiple of 16; of a head's result
  float scale = 1, epsilon = 0;                // of queries; of the latents' norm
  Packed k_up, v_up;                           // floats, of the first head; those of the others lie after it: (nope, latent) and (latent, value)
  const float* norm = nullptr;                 // (latent)
  const float *cos = nullptr, *sin = nullptr;  // (positions, rope / 2)

  [[nodiscard]] std::size_t query() const { return nope + rope; }
  [[nodiscard]] std::size_t entry() const { return latent + rope; }
};

struct Attended {
  const float* q = nullptr;             // (batch, tokens, heads, nope + rope), neither scaled nor rotated
  const float* kv = nullptr;            // (batch, tokens, latent + rope), neither normed nor rotated
  const std::int64_t* start = nullptr;  // (batch), positions of the first tokens: all tokens' lie within the cache and the tables
  std::size_t batch = 0, tokens = 0, context = 0;
  float* cache = nullptr;  // (batch, context, latent + rope); gets the tokens' entries
  float* y = nullptr;      // (batch, tokens, heads, value)
};

// Each token attends to all positions up to its own.
void attend(const LatentAttention& attention, const Attended& call, const Parallel& parallel);

}  // namespace moetrt::ops
