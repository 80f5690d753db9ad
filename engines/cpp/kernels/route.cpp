#include "route.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <vector>

#include "moetrt/error.hpp"

namespace moetrt::kernels {
namespace {

constexpr std::size_t kSharedBytes = 49152;

void require(bool right, const std::string& problem, const std::string& hint) {
  if (!right) throw Error("Route: " + problem, hint);
}

// The places of the largest numbers, the lower place at a tie.
std::vector<int> largest(const std::vector<float>& values, int count) {
  std::vector<int> places(values.size());
  std::iota(places.begin(), places.end(), 0);
  std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)]; });
  places.resize(static_cast<std::size_t>(count));
  return places;
}

std::vector<float> scores_of(const RouteParams& params, const float* logits) {
  std::vector<float> scores(logits, logits + params.experts);
  if (params.scoring == Scoring::sigmoid) {
    for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
    return scores;
  }
  const float top = *std::max_element(scores.begin(), scores.end());
  float total = 0;
  for (float& score : scores) total += score = std::exp(score - top);
  for (float& score : scores) score /= total;
  return scores;
}

void mask_groups(const RouteParams& params, std::vector<float>& choice) {
  const int size = params.experts / params.groups;
  std::vector<float> of_group;
  for (int group = 0; group < params.groups; ++group) {
    const auto begin = choice.begin() + static_cast<std::ptrdiff_t>(group) * size;
    std::vector<float> members(begin, begin + size);
    std::sort(members.rbegin(), members.rend());
    of_group.push_back(params.group_score == GroupScore::max || size == 1 ? members[0] : members[0] + members[1]);
  }
  const std::vector<int> kept = largest(of_group, params.top_groups);
  for (int group = 0; group < params.groups; ++group)
    if (std::find(kept.begin(), kept.end(), group) == kept.end()) std::fill_n(choice.begin() + static_cast<std::ptrdiff_t>(group) * size, size, -INFINITY);
}

}  // namespace

RoutePlan plan(const RouteParams& params) {
  require(params.tokens >= 0, "there cannot be " + std::to_string(params.tokens) + " tokens.", "Give 0 or more.");
  require(params.experts > 0 && params.groups > 0 && params.experts % params.groups == 0,
          std::to_string(params.experts) + " experts are not so many groups: " + std::to_string(params.groups) + ".", "The groups must divide the experts.");
  require(params.top_groups > 0 && params.top_groups <= params.groups, "cannot keep " + std::to_string(params.top_groups) + " of " + std::to_string(params.groups) + " groups.",
          "Keep 1 to all of them.");
  require(params.top_k > 0 && params.top_k <= params.experts / params.groups * params.top_groups,
          "cannot choose " + std::to_string(params.top_k) + " of " + std::to_string(params.experts / params.groups * params.top_groups) + " experts.", "Choose fewer.");
  const std::size_t shared = sizeof(float) * kRouteWarps * static_cast<std::size_t>(2 * params.experts + params.groups + params.top_k);
  require(shared <= kSharedBytes, std::to_string(params.experts) + " experts do not fit into shared memory.", "Up to about 1,500 experts do.");
  return {params, (params.tokens + kRouteWarps - 1) / kRouteWarps, kRouteWarps * 32, shared};
}

std::string RoutePlan::text() const {
  std::ostringstream made;
  made << "route: " << blocks << " blocks of " << threads << " threads, " << shared_bytes << " bytes shared; " << params.tokens << " tokens, " << params.top_k << " of "
       << params.experts << " experts";
  return made.str();
}

void reference(const RouteParams& params, const RoutePointers& pointers) {
  for (int token = 0; token < params.tokens; ++token) {
    const std::vector<float> scores = scores_of(params, pointers.logits + static_cast<std::ptrdiff_t>(token) * params.experts);
    std::vector<float> choice = scores;
    for (int expert = 0; pointers.bias && expert < params.experts; ++expert) choice[static_cast<std::size_t>(expert)] += pointers.bias[expert];
    if (params.top_groups < params.groups) mask_groups(params, choice);
    const std::vector<int> chosen = largest(choice, params.top_k);
    float total = 0;
    for (const int expert : chosen) total += scores[static_cast<std::size_t>(expert)];
    for (int place = 0; place < params.top_k; ++place) {
      const int expert = chosen[static_cast<std::size_t>(place)];
      const float weight = scores[static_cast<std::size_t>(expert)];
      pointers.experts[static_cast<std::ptrdiff_t>(token) * params.top_k + place] = expert;
      pointers.weights[static_cast<std::ptrdiff_t>(token) * params.top_k + place] = (params.normalize ? weight / (total + kEpsilon) : weight) * params.scale;
    }
  }
}

}  // namespace moetrt::kernels
