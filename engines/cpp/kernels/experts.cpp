#include "experts.hpp"

#include <algorithm>
#include <sstream>

#include "moetrt/error.hpp"

namespace moetrt::kernels {
namespace {

constexpr int kWarps = kRowThreads / 32;
constexpr int kUnit = 16;  // numbers that rows are multiples of: 16 bytes of int8
constexpr int kMostExperts = 1024, kMostChoices = 256;
constexpr std::size_t kAlignment = 256, kTileBytes = 3 * sizeof(int);

void require(bool right, const std::string& problem, const std::string& hint) {
  if (!right) throw Error("Experts: " + problem, hint);
}

void check(const ExpertsParams& params) {
  require(params.tokens >= 0, "there cannot be " + std::to_string(params.tokens) + " tokens.", "Give 0 or more.");
  require(params.hidden > 0 && params.hidden % kUnit == 0, "the hidden size is " + std::to_string(params.hidden) + ", no multiple of 16.", "Rows are copied in 16 bytes.");
  require(params.width > 0 && params.width % kUnit == 0, "the width of an expert is " + std::to_string(params.width) + ", no multiple of 16.", "Rows are copied in 16 bytes.");
  require(params.experts > 0 && params.experts <= kMostExperts, "a rank cannot hold " + std::to_string(params.experts) + " experts here.", "Give 1 to 1024.");
  require(params.first_expert >= 0 && params.first_expert + params.experts <= params.all_experts,
          "experts " + std::to_string(params.first_expert) + " to " + std::to_string(params.first_expert + params.experts - 1) + " are not among all " +
              std::to_string(params.all_experts) + ".",
          "Give the first one's id, and how many all ranks have together.");
  require(params.top_k > 0 && params.top_k <= std::min(params.all_experts, kMostChoices), "a token cannot have " + std::to_string(params.top_k) + " experts.",
          "Give 1 to as many as there are, 256 at most.");
  require(params.activations != Activations::floats || params.numbers != Numbers::float32, "products of float32 are not made here.",
          "Use float16, bfloat16 or int8; a backend's own products serve float32.");
}

int suited(const ExpertsParams& params) {
  const double rows = static_cast<double>(params.tokens) * params.top_k / params.all_experts;
  int chosen = 0;
  for (int next = 1; next < static_cast<int>(tilings().size()); ++next)
    if (rows > tilings()[static_cast<std::size_t>(next - 1)].rows) chosen = next;
  return chosen;
}

unsigned blocks_for(int number, int each) { return static_cast<unsigned>((number + each - 1) / each); }

std::size_t number_bytes(Numbers numbers) { return numbers == Numbers::float32 ? 4 : 2; }

Workspace arranged(const ExpertsParams& params, int rows, int tiles) {
  std::size_t end = 0;
  const auto room = [&](std::size_t count, std::size_t bytes) {
    const std::size_t begin = end;
    end = (end + count * bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  };
  const auto tokens = static_cast<std::size_t>(params.tokens), all = static_cast<std::size_t>(rows), width = static_cast<std::size_t>(params.width),
             hidden = static_cast<std::size_t>(params.hidden);
  const bool int8 = params.activations != Activations::floats, by_token = params.activations == Activations::int8_by_token;
  Workspace made{};
  made.token_of_row = room(all, sizeof(int));
  made.weight_of_row = room(all, sizeof(float));
  made.row_of_slot = room(tokens * static_cast<std::size_t>(params.top_k), sizeof(int));
  made.tiles = room(static_cast<std::size_t>(tiles), kTileBytes);
  made.total = room(1, sizeof(int));
  made.x = room(int8 ? tokens * hidden : 0, 1);
  made.x_scales = room(int8 ? tokens : 0, sizeof(float));
  made.narrow = room(int8 ? all * width : 0, 1);
  made.narrow_scales = room(by_token ? all : 0, sizeof(float));
  made.wide = room(int8 && !by_token ? 0 : all * width, int8 ? sizeof(float) : number_bytes(params.numbers));
  const std::size_t after_wide = end;
  if (by_token) end = made.wide;  // what is to be rounded has been, when parts are made
  made.parts = room(all * hidden, number_bytes(params.numbers));
  made.bytes = std::max(end, after_wide);
  return made;
}

std::vector<Step> steps_of(const ExpertsParams& params, const Tiling& tiling, int rows, int tiles) {
  const auto tile_rows = static_cast<unsigned>(tiles), tokens = static_cast<unsigned>(params.tokens), experts = static_cast<unsigned>(params.experts);
  const bool int8 = params.activations != Activations::floats;
  const auto sort_bytes = (experts + kWarps) * sizeof(int);
  std::vector<Step> steps;
  steps.push_back({int8 ? "sort and round" : "sort", experts + (int8 ? tokens : 0), 1, kRowThreads, sort_bytes});
  steps.push_back({"gate and up", blocks_for(2 * params.width, tiling.columns), tile_rows, tiling.threads, tiling.shared_bytes});
  if (params.activations == Activations::int8_by_token) steps.push_back({"round", static_cast<unsigned>(rows), 1, kRowThreads, kWarps * sizeof(float)});
  steps.push_back({"down", blocks_for(params.hidden, tiling.columns), tile_rows, tiling.threads, tiling.shared_bytes});
  steps.push_back({"combine", tokens, blocks_for(params.hidden, kRowThreads * kColumnsAThread), kRowThreads, static_cast<std::size_t>(params.top_k) * sizeof(int)});
  return steps;
}

}  // namespace

ExpertsPlan plan(const ExpertsParams& params) {
  check(params);
  return plan(params, suited(params));
}

ExpertsPlan plan(const ExpertsParams& params, int tiling) {
  check(params);
  require(tiling >= 0 && tiling < static_cast<int>(tilings().size()), "there is no tiling " + std::to_string(tiling) + ".",
          "Give 0 to " + std::to_string(tilings().size() - 1) + ".");
  const Tiling& chosen = tilings()[static_cast<std::size_t>(tiling)];
  const std::int64_t slots = static_cast<std::int64_t>(params.tokens) * params.top_k;
  require(slots <= (1 << 24), std::to_string(params.tokens) + " tokens are too many at once.", "Give " + std::to_string((1 << 24) / params.top_k) + " at most.");
  const int rows = static_cast<int>(slots);
  // Every expert may leave one tile that is not full.
  const int tiles = std::min(rows, rows / chosen.rows + params.experts);
  require(tiles <= 65535, std::to_string(params.tokens) + " tokens are too many at once.", "Give fewer.");
  ExpertsPlan made{params, tiling, rows, tiles, arranged(params, rows, tiles), {}};
  if (params.tokens > 0) made.steps = steps_of(params, chosen, rows, tiles);
  return made;
}

std::string ExpertsPlan::text() const {
  std::ostringstream made;
  made << "experts: tiles of " << tilings()[static_cast<std::size_t>(tiling)].rows << " rows by " << tilings()[static_cast<std::size_t>(tiling)].columns << " columns, " << tiles
       << " at most; workspace " << workspace.bytes << " bytes\n";
  for (const Step& step : steps)
    made << "  " << step.name << ": " << step.blocks << " x " << step.block_rows << " blocks of " << step.threads << " threads, " << step.shared_bytes << " bytes shared\n";
  return made.str();
}

}  // namespace moetrt::kernels
