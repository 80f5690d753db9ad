// Which experts a token goes to, and with which weights (arXiv 2412.19437 section 2.1.2, 2405.04434 section 2.2): the op Route.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace moetrt::kernels {

constexpr int kRouteWarps = 4;      // of a block, each with a token
constexpr float kEpsilon = 1e-20f;  // added to the sum that weights are divided by: EPSILON in exporter/ops/route.py

enum class Scoring { sigmoid, softmax };
enum class GroupScore { top2, max };

struct RouteParams {
  int tokens = 0;
  int experts = 0;     // of all ranks
  int top_k = 0;       // experts of a token
  int groups = 1;      // of equally many experts, one after another
  int top_groups = 1;  // groups that a token may choose from
  Scoring scoring = Scoring::sigmoid;
  GroupScore group_score = GroupScore::top2;
  bool normalize = false;  // weights of a token sum to `scale`
  float scale = 1.0f;
};

struct RoutePlan {
  RouteParams params;
  int blocks, threads;
  std::size_t shared_bytes;
  [[nodiscard]] std::string text() const;
};

// Throws Error: the numbers make no routing.
RoutePlan plan(const RouteParams& params);

struct RoutePointers {
  const float* logits = nullptr;    // (tokens, experts)
  const float* bias = nullptr;      // (experts), of the choice and not of the weights; may be null
  std::int64_t* experts = nullptr;  // (tokens, top_k): best first, the lower id at a tie
  float* weights = nullptr;         // (tokens, top_k)
};

// `stream`: a cudaStream_t; of no meaning on a CPU.
void launch(const RoutePlan& plan, const RoutePointers& pointers, void* stream);

// The same in plain loops.
void reference(const RouteParams& params, const RoutePointers& pointers);

}  // namespace moetrt::kernels
