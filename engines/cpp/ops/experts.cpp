#include "experts.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace moetrt::ops {
namespace {

constexpr std::size_t kTokens = 512;  // that are taken at a time

// A token at an expert; pairs of an expert lie one after another.
struct Pair {
  std::size_t token;
  std::size_t expert;
  std::size_t group;  // of the pairs of its expert
};

// Some panels of an expert's matrix, for all of its pairs.
struct Piece {
  std::size_t group, panel, end;
};

struct Scratch {
  Rows x;
  std::vector<Pair> pairs;
  std::vector<std::size_t> place;   // (tokens, top_k) → the pair, or none
  std::vector<std::size_t> starts;  // of each group of pairs, and their end
  std::vector<Rows> inputs, inner;  // of each group
  std::vector<float> h, out;
  std::vector<Piece> pieces;
};

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

Packed of_expert(const Packed& matrix, std::size_t expert) { return matrix.behind(expert * matrix.bytes(), expert * matrix.scale_count()); }

// Pairs by expert, and where each group begins.
void sort(const Experts& experts, const std::int64_t* chosen, std::size_t tokens, std::size_t top_k, Scratch& scratch) {
  std::vector<std::size_t> counts(experts.count + 1, 0);
  const auto local = [&](std::size_t at) {
    const std::int64_t id = chosen[at] - experts.first;
    return id >= 0 && static_cast<std::size_t>(id) < experts.count ? static_cast<std::size_t>(id) : experts.count;
  };
  for (std::size_t at = 0; at < tokens * top_k; ++at) ++counts[local(at)];
  std::vector<std::size_t> next(experts.count, 0), group(experts.count, 0);
  scratch.starts.clear();
  std::size_t total = 0;
  for (std::size_t expert = 0; expert < experts.count; ++expert) {
    group[expert] = scratch.starts.size();
    if (counts[expert]) scratch.starts.push_back(total);
    next[expert] = total;
    total += counts[expert];
  }
  scratch.starts.push_back(total);
  scratch.pairs.resize(total);
  scratch.place.resize(tokens * top_k);
  for (std::size_t at = 0; at < tokens * top_k; ++at) {
    const std::size_t expert = local(at);
    scratch.place[at] = expert == experts.count ? kNone : next[expert]++;
    if (expert != experts.count) scratch.pairs[scratch.place[at]] = {at / top_k, expert, group[expert]};
  }
}

// Each group's matrix in pieces.
void cut(const Packed& matrix, std::size_t groups, std::vector<Piece>& pieces) {
  const std::size_t panels = panels_at_a_time(groups * matrix.bytes(), matrix.apart * matrix.panel_bytes());
  pieces.clear();
  for (std::size_t group = 0; group < groups; ++group)
    for (std::size_t panel = 0; panel < matrix.panels(); panel += panels) pieces.push_back({group, panel, std::min(panel + panels, matrix.panels())});
}

void some(const Experts& experts, const float* x, const std::int64_t* chosen, const float* weights, std::size_t tokens, std::size_t top_k, float* y, const Parallel& parallel) {
  static thread_local Scratch kept;
  Scratch& scratch = kept;  // what other threads see is this thread's
  const std::size_t hidden = experts.hidden(), width = experts.width(), digits = digits_of(experts.rounding);
  sort(experts, chosen, tokens, top_k, scratch);
  const std::size_t groups = scratch.starts.size() - 1;
  const auto size = [&](std::size_t group) { return scratch.starts[group + 1] - scratch.starts[group]; };
  scratch.x.resize(tokens, digits, hidden, experts.gate.block);
  each_row(tokens, parallel, [&](std::size_t token) { round(x + token * hidden, experts.rounding, experts.x_scale ? *experts.x_scale : 0, scratch.x, token); });
  scratch.inputs.resize(std::max(scratch.inputs.size(), groups));
  scratch.inner.resize(std::max(scratch.inner.size(), groups));
  scratch.h.resize(scratch.pairs.size() * width);
  scratch.out.resize(scratch.pairs.size() * hidden);
  each_row(groups, parallel, [&](std::size_t group) {
    scratch.inputs[group].resize(size(group), digits, hidden, experts.gate.block);
    for (std::size_t pair = 0; pair < size(group); ++pair) scratch.inputs[group].copy(pair, scratch.x, scratch.pairs[scratch.starts[group] + pair].token);
  });
  cut(experts.gate, groups, scratch.pieces);
  parallel(scratch.pieces.size(), [&](std::size_t index) {
    static thread_local Sums room;
    static thread_local std::vector<float> both;
    const Piece& piece = scratch.pieces[index];
    const std::size_t expert = scratch.pairs[scratch.starts[piece.group]].expert, count = size(piece.group);
    const Packed gate = of_expert(experts.gate, expert), up = of_expert(experts.up, expert);
    both.resize(2 * count * kLanes);
    for (std::size_t panel = piece.panel; panel < piece.end; ++panel) {
      multiply(gate, panel, scratch.inputs[piece.group], both.data(), kLanes, room);
      multiply(up, panel, scratch.inputs[piece.group], both.data() + count * kLanes, kLanes, room);
      for (std::size_t pair = 0; pair < count; ++pair)
        swiglu(both.data() + pair * kLanes, both.data() + (count + pair) * kLanes, scratch.h.data() + (scratch.starts[piece.group] + pair) * width + panel * kLanes);
    }
  });
  for (std::size_t group = 0; group < groups; ++group) scratch.inner[group].resize(size(group), digits, width, experts.down.block);
  each_row(scratch.pairs.size(), parallel, [&](std::size_t pair) {
    const std::size_t group = scratch.pairs[pair].group;
    const float fixed = experts.h_scale ? experts.h_scale[scratch.pairs[pair].expert] : 0;
    round(scratch.h.data() + pair * width, experts.rounding, fixed, scratch.inner[group], pair - scratch.starts[group]);
  });
  cut(experts.down, groups, scratch.pieces);
  parallel(scratch.pieces.size(), [&](std::size_t index) {
    static thread_local Sums room;
    const Piece& piece = scratch.pieces[index];
    const Packed matrix = of_expert(experts.down, scratch.pairs[scratch.starts[piece.group]].expert);
    for (std::size_t panel = piece.panel; panel < piece.end; ++panel)
      multiply(matrix, panel, scratch.inner[piece.group], scratch.out.data() + scratch.starts[piece.group] * hidden + panel * kLanes, hidden, room);
  });
  each_row(tokens, parallel, [&](std::size_t token) {
    std::fill_n(y + token * hidden, hidden, 0.0f);
    for (std::size_t choice = token * top_k; choice < (token + 1) * top_k; ++choice)
      if (scratch.place[choice] != kNone) add(y + token * hidden, scratch.out.data() + scratch.place[choice] * hidden, weights[choice], hidden);
  });
}

}  // namespace

void experts(const Experts& experts, const float* x, const std::int64_t* chosen, const float* weights, std::size_t tokens, std::size_t top_k, float* y, const Parallel& parallel) {
  const std::size_t hidden = experts.hidden();
  for (std::size_t first = 0; first < tokens; first += kTokens)
    some(experts, x + first * hidden, chosen + first * top_k, weights + first * top_k, std::min(kTokens, tokens - first), top_k, y + first * hidden, parallel);
}

}  // namespace moetrt::ops
