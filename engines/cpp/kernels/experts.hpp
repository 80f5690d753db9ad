// The routed experts that this rank holds: each token through its experts' SwiGLU, weighted and summed. The ops Experts and QuantizedExperts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moetrt::kernels {

constexpr int kRowThreads = 256;                 // of a block that works on rows
constexpr int kColumnsAThread = 4;               // that one of them sums
constexpr float kLeastRange = 6.103515625e-05f;  // of a token, 2^-14: FLOOR in exporter/ops/quantized_experts.py

enum class Numbers { float32, float16, bfloat16 };

// What becomes of the numbers that go into a product.
enum class Activations {
  floats,        // stay; weights are of the same numbers
  int8_static,   // rounded by scales that calibration found; weights are int8
  int8_by_token  // rounded by each token's own range; weights are int8
};

struct ExpertsParams {
  int tokens = 0;
  int top_k = 0;
  int hidden = 0;                      // a multiple of 16
  int width = 0;                       // of an expert; a multiple of 16
  int experts = 0;                     // that this rank holds
  int all_experts = 0;                 // of all ranks
  int first_expert = 0;                // id of the first that this rank holds
  Numbers numbers = Numbers::float16;  // of x, y and scales
  Activations activations = Activations::floats;
};

// How rows of a product are cut: `rows` of one expert by `columns` of its weights a block.
struct Tiling {
  const char* name;
  int rows, columns, threads, stages;
  std::size_t shared_bytes;
};

struct Step {
  const char* name;
  unsigned blocks, block_rows;
  int threads;
  std::size_t shared_bytes;
};

// Where arrays lie in the workspace, in bytes from its start.
struct Workspace {
  std::size_t token_of_row, weight_of_row, row_of_slot, tiles, total, x, x_scales, wide, narrow, narrow_scales, parts, bytes;
};

struct ExpertsPlan {
  ExpertsParams params;
  int tiling;  // which of tilings()
  int rows;    // pairs of a token and an expert of this rank, at most
  int tiles;   // of rows, at most
  Workspace workspace;
  std::vector<Step> steps;
  [[nodiscard]] std::string text() const;
};

const std::vector<Tiling>& tilings();

// Throws Error: the kernels do not take these numbers.
ExpertsPlan plan(const ExpertsParams& params);
// The same with another tiling than the one that suits the expected rows of an expert.
ExpertsPlan plan(const ExpertsParams& params, int tiling);

// Device memory, aligned to 16 bytes. Scales are of `numbers`.
struct ExpertsPointers {
  const void* x = nullptr;                // (tokens, hidden)
  const std::int64_t* experts = nullptr;  // (tokens, top_k): ids among all ranks' experts; those of other ranks add nothing
  const float* weights = nullptr;         // (tokens, top_k)
  const void* gate_up = nullptr;          // (experts, 2 * width, hidden), rows g0, u0, g1, u1, …
  const void* down = nullptr;             // (experts, hidden, width)
  const void* gate_up_scale = nullptr;    // (experts, 2 * width), where weights are int8
  const void* down_scale = nullptr;       // (experts, hidden), likewise
  const void* x_scale = nullptr;          // one, where activations are static
  const void* h_scale = nullptr;          // (experts), likewise
  void* y = nullptr;                      // (tokens, hidden)
  void* workspace = nullptr;              // plan.workspace.bytes
};

// `stream`: a cudaStream_t; of no meaning on a CPU. What is launched depends on the plan alone, so that it can be captured.
void launch(const ExpertsPlan& plan, const ExpertsPointers& pointers, void* stream);

// The same in plain loops, without a workspace; sums of products of floats in double, the parts of a token summed by expert.
void reference(const ExpertsParams& params, const ExpertsPointers& pointers);

}  // namespace moetrt::kernels
