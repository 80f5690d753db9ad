#include "device.cuh"
#include "route.hpp"

namespace moetrt::kernels {
namespace {

// Of two experts the better one, the lower id at a tie.
struct Best {
  float value;
  int id;
  MOETRT_DEVICE void meet(float other, int other_id) {
    if (other > value || (other == value && other_id < id)) {
      value = other;
      id = other_id;
    }
  }
};

MOETRT_DEVICE Best best_of_warp(Best mine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float value = from_lane(mine.value, lane() ^ distance);
    const int id = from_lane(mine.id, lane() ^ distance);
    mine.meet(value, id);
  }
  return mine;
}

MOETRT_DEVICE float sum_of_warp(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = sum(value, from_lane(value, lane() ^ distance));
  return value;
}

MOETRT_DEVICE void score(const RouteParams& params, const float* logits, float* scores) {
  if (params.scoring == Scoring::sigmoid) {
    for (int expert = lane(); expert < params.experts; expert += kWarp) scores[expert] = quotient(1.0f, sum(1.0f, exponential(-logits[expert])));
    return;
  }
  float largest = -INFINITY, total = 0;
  for (int expert = lane(); expert < params.experts; expert += kWarp) largest = logits[expert] > largest ? logits[expert] : largest;
  largest = largest_of_warp(largest);
  for (int expert = lane(); expert < params.experts; expert += kWarp) {
    scores[expert] = exponential(logits[expert] - largest);
    total = sum(total, scores[expert]);
  }
  total = sum_of_warp(total);
  for (int expert = lane(); expert < params.experts; expert += kWarp) scores[expert] = quotient(scores[expert], total);
}

MOETRT_DEVICE float group_score(const RouteParams& params, const float* choice) {
  float first = -INFINITY, second = -INFINITY;
  const int size = params.experts / params.groups;
  for (int expert = 0; expert < size; ++expert) {
    const float value = choice[expert];
    second = value > first ? first : value > second ? value : second;
    first = value > first ? value : first;
  }
  return params.group_score == GroupScore::max || size == 1 ? first : sum(first, second);
}

// Marks the experts of groups that are not among the best as never chosen.
MOETRT_DEVICE void mask_groups(const RouteParams& params, float* choice, float* group_scores) {
  const int size = params.experts / params.groups;
  for (int group = lane(); group < params.groups; group += kWarp) group_scores[group] = group_score(params, choice + group * size);
  sync_warp();
  for (int group = lane(); group < params.groups; group += kWarp) {
    int before = 0;
    for (int other = 0; other < params.groups; ++other) before += group_scores[other] > group_scores[group] || (group_scores[other] == group_scores[group] && other < group);
    if (before < params.top_groups) continue;
    for (int expert = 0; expert < size; ++expert) choice[group * size + expert] = -INFINITY;
  }
  sync_warp();
}

// A warp for a token.
MOETRT_KERNEL(kRouteWarps* kWarp) route_kernel(RouteParams params, RoutePointers pointers) {
  const int token = block() * kRouteWarps + warp();
  if (token >= params.tokens) return;
  const int floats = 2 * params.experts + params.groups + params.top_k;
  auto* scores = reinterpret_cast<float*>(shared_memory()) + warp() * floats;
  float* choice = scores + params.experts;
  float* group_scores = choice + params.experts;
  auto* chosen = reinterpret_cast<int*>(group_scores + params.groups);

  score(params, pointers.logits + static_cast<std::int64_t>(token) * params.experts, scores);
  for (int expert = lane(); expert < params.experts; expert += kWarp) choice[expert] = pointers.bias ? sum(scores[expert], pointers.bias[expert]) : scores[expert];
  sync_warp();
  if (params.top_groups < params.groups) mask_groups(params, choice, group_scores);

  Best last{INFINITY, -1};
  float total = 0;
  for (int place = 0; place < params.top_k; ++place) {
    Best best{-INFINITY, params.experts};
    for (int expert = lane(); expert < params.experts; expert += kWarp)
      if (choice[expert] < last.value || (choice[expert] == last.value && expert > last.id)) best.meet(choice[expert], expert);
    last = best_of_warp(best);
    if (lane() == 0) chosen[place] = last.id;
    total = sum(total, scores[last.id]);
  }
  sync_warp();
  for (int place = lane(); place < params.top_k; place += kWarp) {
    const float weight = scores[chosen[place]], share = params.normalize ? quotient(weight, sum(total, kEpsilon)) : weight;
    pointers.experts[static_cast<std::int64_t>(token) * params.top_k + place] = chosen[place];
    pointers.weights[static_cast<std::int64_t>(token) * params.top_k + place] = product(share, params.scale);
  }
}

}  // namespace

void launch(const RoutePlan& plan, const RoutePointers& pointers, void* stream) {
  if (plan.blocks == 0) return;
  launch(route_kernel, dim3{static_cast<unsigned>(plan.blocks)}, plan.threads, plan.shared_bytes, static_cast<Stream>(stream), plan.params, pointers);
}

}  // namespace moetrt::kernels
