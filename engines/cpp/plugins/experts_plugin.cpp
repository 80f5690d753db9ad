#include "experts_plugin.hpp"

namespace moetrt::plugins {
namespace {

constexpr std::size_t kStatic = 9;  // inputs where activations have scales of their own

kernels::Numbers numbers(DataType type) {
  if (type == DataType::kHALF) return kernels::Numbers::float16;
  return type == DataType::kBF16 ? kernels::Numbers::bfloat16 : kernels::Numbers::float32;
}

bool is_half(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

}  // namespace

ExpertsBase::ExpertsBase(const Fields& fields, kernels::Activations activations) {
  params_.first_expert = fields.integer("first_expert");
  params_.all_experts = fields.integer("all_experts");
  params_.activations = activations;
}

kernels::ExpertsPlan ExpertsBase::planned(const Operands& inputs) const {
  kernels::ExpertsParams sized = params_;
  const Dims &x = inputs[0].dims, &gate_up = inputs[3].dims;
  sized.tokens = static_cast<int>(x.d[0]);
  sized.top_k = static_cast<int>(inputs[1].dims.d[1]);
  sized.hidden = static_cast<int>(x.d[1]);
  sized.experts = static_cast<int>(gate_up.d[0]);
  sized.width = static_cast<int>(gate_up.d[1] / 2);
  sized.numbers = numbers(inputs[0].type);
  return kernels::plan(sized);
}

kernels::ExpertsPointers ExpertsBase::common(const void* const* inputs, void* const* outputs, void* workspace) {
  kernels::ExpertsPointers at;
  at.x = inputs[0];
  at.experts = static_cast<const std::int64_t*>(inputs[1]);
  at.weights = static_cast<const float*>(inputs[2]);
  at.gate_up = inputs[3];
  at.y = outputs[0];
  at.workspace = workspace;
  return at;
}

std::vector<Attribute> Experts::attributes() { return {{"first_expert", 0}, {"all_experts", 0}}; }

bool Experts::takes(std::int32_t place, DataType type, DataType first, std::int32_t) const {
  if (place == 1) return type == DataType::kINT64;
  if (place == 2) return type == DataType::kFLOAT;
  return type == first && is_half(type);
}

void Experts::enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const {
  kernels::ExpertsPointers at = common(inputs, outputs, workspace);
  at.down = inputs[4];
  kernels::launch(planned(operands), at, stream);
}

std::vector<Attribute> QuantizedExperts::attributes() { return {{"first_expert", 0}, {"all_experts", 0}, {"activations", std::string("static")}}; }

QuantizedExperts::QuantizedExperts(const Fields& fields) : ExpertsBase(fields, kernels::Activations::int8_static) {
  const std::string& activations = fields.text("activations");
  if (activations != "static" && activations != "token") throw Error("QuantizedExperts' activations are '" + activations + "'.", "Known are static and token.");
  if (activations == "token") params_.activations = kernels::Activations::int8_by_token;
}

bool QuantizedExperts::takes(std::int32_t place, DataType type, DataType first, std::int32_t inputs) const {
  if (place == 1) return type == DataType::kINT64;
  if (place == 2) return type == DataType::kFLOAT;
  if (place == 3 || place == 5) return type == DataType::kINT8;
  return inputs == (params_.activations == kernels::Activations::int8_static ? static_cast<std::int32_t>(kStatic) : 7) && type == first &&
         (is_half(type) || type == DataType::kFLOAT);
}

void QuantizedExperts::enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const {
  kernels::ExpertsPointers at = common(inputs, outputs, workspace);
  at.gate_up_scale = inputs[4];
  at.down = inputs[5];
  at.down_scale = inputs[6];
  if (operands.size() == kStatic) {
    at.x_scale = inputs[7];
    at.h_scale = inputs[8];
  }
  kernels::launch(planned(operands), at, stream);
}

}  // namespace moetrt::plugins
