#include "experts.hpp"
#include "grouped_gemm.cuh"
#include "rows.cuh"

namespace moetrt::kernels {
namespace {

// In the order of tilings().
using Few = GemmTile<16, 64, 1, 4, 6>;
using Some = GemmTile<64, 128, 2, 4, 4>;
using Many = GemmTile<128, 128, 2, 4, 3>;

// Sums of int8 products become numbers: · the row's scale · the column's.
MOETRT_DEVICE float scaled(std::int32_t acc, float row, float column) { return product(product(static_cast<float>(acc), column), row); }

template <typename Number>
struct FinishGateUp {
  Number* h;  // (rows, width)
  int width;
  MOETRT_DEVICE void operator()(int, int row, int column, float gate, float up) const { narrow(product(silu(gate), up), h[static_cast<std::int64_t>(row) * width + column / 2]); }
};

// One of `rounded`, by the expert's scale, and `wide`, to be rounded by its own range.
template <typename Number>
struct FinishGateUpInt8 {
  const float* x_scales;  // by token
  const int* token_of_row;
  const Number* column_scale;  // (experts, 2 * width)
  const Number* h_scale;       // by expert; null: `wide` is made
  Int8* rounded;
  float* wide;
  int width;
  MOETRT_DEVICE void operator()(int expert, int row, int column, std::int32_t gate_sum, std::int32_t up_sum) const {
    const Number* scale = column_scale + static_cast<std::int64_t>(expert) * 2 * width + column;
    const float x_scale = x_scales[token_of_row[row]];
    const float gate = scaled(gate_sum, x_scale, widen(scale[0])), up = scaled(up_sum, x_scale, widen(scale[1]));
    const float h = product(silu(gate), up);
    const std::int64_t at = static_cast<std::int64_t>(row) * width + column / 2;
    if (h_scale)
      rounded[at] = to_int8(quotient(h, widen(h_scale[expert])));
    else
      wide[at] = h;
  }
};

template <typename Number>
struct alignas(2 * sizeof(Number)) Pair {
  Number first, second;
};

template <typename Number>
MOETRT_DEVICE void store_pair(Number* at, float first, float second) {
  Pair<Number> pair;
  narrow(first, pair.first);
  narrow(second, pair.second);
  *reinterpret_cast<Pair<Number>*>(at) = pair;
}

template <typename Number>
struct FinishDown {
  const float* weight_of_row;
  Number* parts;  // (rows, hidden)
  int hidden;
  MOETRT_DEVICE void operator()(int, int row, int column, float first, float second) const {
    const float weight = weight_of_row[row];
    store_pair(parts + static_cast<std::int64_t>(row) * hidden + column, product(weight, first), product(weight, second));
  }
};

template <typename Number>
struct FinishDownInt8 {
  const float* weight_of_row;
  const Number* column_scale;  // (experts, hidden)
  const Number* h_scale;       // by expert; null: by row
  const float* h_scales;       // by row
  Number* parts;
  int hidden;
  MOETRT_DEVICE void operator()(int expert, int row, int column, std::int32_t first, std::int32_t second) const {
    const Number* scale = column_scale + static_cast<std::int64_t>(expert) * hidden + column;
    const float weight = weight_of_row[row], own = h_scale ? widen(h_scale[expert]) : h_scales[row];
    store_pair(parts + static_cast<std::int64_t>(row) * hidden + column, product(weight, scaled(first, own, widen(scale[0]))),
               product(weight, scaled(second, own, widen(scale[1]))));
  }
};

// What all of a plan's launches share.
template <typename Number>
struct Call {
  const ExpertsPlan& plan;
  const ExpertsPointers& pointers;
  Stream stream;

  template <typename Type>
  [[nodiscard]] Type* work(std::size_t offset) const {
    return reinterpret_cast<Type*>(static_cast<std::byte*>(pointers.workspace) + offset);
  }
  template <typename... Parameters, typename... Arguments>
  void operator()(const Step& step, void (*kernel)(Parameters...), Arguments... arguments) const {
    launch(kernel, dim3{step.blocks, step.block_rows}, step.threads, step.shared_bytes, stream, arguments...);
  }
};

template <typename Number>
Sorting sorting(const Call<Number>& call) {
  const ExpertsParams& params = call.plan.params;
  const Workspace& at = call.plan.workspace;
  return {call.pointers.experts,
          call.pointers.weights,
          params.tokens * params.top_k,
          params.top_k,
          params.first_expert,
          params.experts,
          tilings()[static_cast<std::size_t>(call.plan.tiling)].rows,
          call.plan.tiles,
          call.template work<int>(at.token_of_row),
          call.template work<float>(at.weight_of_row),
          call.template work<int>(at.row_of_slot),
          call.template work<RowTile>(at.tiles),
          call.template work<int>(at.total)};
}

template <typename Tile, typename Number>
void run_floats(const Call<Number>& call) {
  const ExpertsParams& params = call.plan.params;
  const Workspace& at = call.plan.workspace;
  const Sorting rows = sorting(call);
  auto* x = static_cast<const Number*>(call.pointers.x);
  auto* h = call.template work<Number>(at.wide);
  auto* parts = call.template work<Number>(at.parts);
  const Product<Number> gate_up{x, rows.token_of_row, static_cast<const Number*>(call.pointers.gate_up), rows.tile_table, 2 * params.width, params.hidden};
  const Product<Number> down{h, nullptr, static_cast<const Number*>(call.pointers.down), rows.tile_table, params.hidden, params.width};
  auto step = call.plan.steps.begin();
  call(*step++, prepare_kernel<Number>, rows, x, params.hidden, static_cast<const Number*>(nullptr), static_cast<Int8*>(nullptr), static_cast<float*>(nullptr));
  call(*step++, grouped_gemm<Tile, Number, FinishGateUp<Number>>, gate_up, FinishGateUp<Number>{h, params.width});
  call(*step++, grouped_gemm<Tile, Number, FinishDown<Number>>, down, FinishDown<Number>{rows.weight_of_row, parts, params.hidden});
  call(*step++, combine_kernel<Number>, parts, rows.row_of_slot, params.top_k, params.hidden, static_cast<Number*>(call.pointers.y));
}

template <typename Tile, typename Number>
void run_int8(const Call<Number>& call) {
  const ExpertsParams& params = call.plan.params;
  const Workspace& at = call.plan.workspace;
  const Sorting rows = sorting(call);
  const bool fixed = params.activations == Activations::int8_static;
  auto* x = call.template work<Int8>(at.x);
  auto* x_scales = call.template work<float>(at.x_scales);
  auto* h = call.template work<Int8>(at.narrow);
  auto* h_scales = call.template work<float>(at.narrow_scales);
  auto* wide = call.template work<float>(at.wide);
  auto* parts = call.template work<Number>(at.parts);
  const auto* x_scale = fixed ? static_cast<const Number*>(call.pointers.x_scale) : nullptr;
  const auto* h_scale = fixed ? static_cast<const Number*>(call.pointers.h_scale) : nullptr;
  const Product<Int8> gate_up{x, rows.token_of_row, static_cast<const Int8*>(call.pointers.gate_up), rows.tile_table, 2 * params.width, params.hidden};
  const Product<Int8> down{h, nullptr, static_cast<const Int8*>(call.pointers.down), rows.tile_table, params.hidden, params.width};
  const FinishGateUpInt8<Number> to_h{x_scales, rows.token_of_row, static_cast<const Number*>(call.pointers.gate_up_scale), h_scale, h, wide, params.width};
  const FinishDownInt8<Number> to_parts{rows.weight_of_row, static_cast<const Number*>(call.pointers.down_scale), h_scale, h_scales, parts, params.hidden};
  auto step = call.plan.steps.begin();
  call(*step++, prepare_kernel<Number>, rows, static_cast<const Number*>(call.pointers.x), params.hidden, x_scale, x, x_scales);
  call(*step++, grouped_gemm<Tile, Int8, FinishGateUpInt8<Number>>, gate_up, to_h);
  if (!fixed) call(*step++, round_kernel<float>, rows.total, wide, params.width, h, h_scales);
  call(*step++, grouped_gemm<Tile, Int8, FinishDownInt8<Number>>, down, to_parts);
  call(*step++, combine_kernel<Number>, parts, rows.row_of_slot, params.top_k, params.hidden, static_cast<Number*>(call.pointers.y));
}

template <typename Tile, typename Number>
void run_tiled(const Call<Number>& call) {
  if (call.plan.params.activations != Activations::floats) return run_int8<Tile>(call);
  if constexpr (sizeof(Number) == 2) run_floats<Tile>(call);
}

template <typename Number>
void run(const ExpertsPlan& plan, const ExpertsPointers& pointers, Stream stream) {
  const Call<Number> call{plan, pointers, stream};
  switch (plan.tiling) {
    case 0:
      return run_tiled<Few>(call);
    case 1:
      return run_tiled<Some>(call);
    default:
      return run_tiled<Many>(call);
  }
}

template <typename Tile>
Tiling described(const char* name) {
  return {name, Tile::kRows, Tile::kColumns, Tile::kThreads, Tile::kStages, Tile::kSharedBytes};
}

}  // namespace

const std::vector<Tiling>& tilings() {
  static const std::vector<Tiling> all{described<Few>("few"), described<Some>("some"), described<Many>("many")};
  return all;
}

void launch(const ExpertsPlan& plan, const ExpertsPointers& pointers, void* stream) {
  if (plan.params.tokens == 0) return;
  switch (plan.params.numbers) {
    case Numbers::float16:
      return run<Half>(plan, pointers, static_cast<Stream>(stream));
    case Numbers::bfloat16:
      return run<BFloat16>(plan, pointers, static_cast<Stream>(stream));
    case Numbers::float32:
      return run<float>(plan, pointers, static_cast<Stream>(stream));
  }
}

}  // namespace moetrt::kernels
