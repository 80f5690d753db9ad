#include "route_plugin.hpp"

namespace moetrt::plugins {

std::vector<Attribute> Route::attributes() {
  return {{"top_k", 0}, {"groups", 1}, {"top_groups", 1}, {"scoring", std::string("sigmoid")}, {"group_score", std::string("top2")}, {"normalize", 0}, {"scale", 1.0f}};
}

Route::Route(const Fields& fields) {
  const auto one_of = [&](const char* name, const char* first, const char* second) {
    const std::string& text = fields.text(name);
    if (text != first && text != second) throw Error(std::string("Route's ") + name + " is '" + text + "'.", std::string("Known are ") + first + " and " + second + ".");
    return text == first;
  };
  params_.top_k = fields.integer("top_k");
  params_.groups = fields.integer("groups");
  params_.top_groups = fields.integer("top_groups");
  params_.scoring = one_of("scoring", "sigmoid", "softmax") ? kernels::Scoring::sigmoid : kernels::Scoring::softmax;
  params_.group_score = one_of("group_score", "top2", "max") ? kernels::GroupScore::top2 : kernels::GroupScore::max;
  params_.normalize = fields.integer("normalize") != 0;
  params_.scale = fields.number("scale");
}

void Route::output_types(std::span<const DataType>, DataType* types) const {
  types[0] = DataType::kINT64;
  types[1] = DataType::kFLOAT;
}

void Route::output_dims(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs, nvinfer1::IExprBuilder& builder) const {
  for (std::int32_t place = 0; place < kOutputs; ++place) {
    outputs[place].nbDims = 2;
    outputs[place].d[0] = inputs[0].d[0];
    outputs[place].d[1] = builder.constant(params_.top_k);
  }
}

bool Route::takes(std::int32_t place, DataType type, DataType, std::int32_t inputs) const { return type == (place == inputs ? DataType::kINT64 : DataType::kFLOAT); }

std::size_t Route::workspace(const Operands& inputs) const {
  std::ignore = planned(inputs);  // refuses what cannot be, when the engine is built
  return 0;
}

void Route::enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) const {
  const auto* bias = operands.size() > 1 ? static_cast<const float*>(inputs[1]) : nullptr;
  kernels::launch(planned(operands), {static_cast<const float*>(inputs[0]), bias, static_cast<std::int64_t*>(outputs[0]), static_cast<float*>(outputs[1])}, stream);
}

kernels::RoutePlan Route::planned(const Operands& inputs) const {
  kernels::RouteParams sized = params_;
  sized.tokens = static_cast<int>(inputs[0].dims.d[0]);
  sized.experts = static_cast<int>(inputs[0].dims.d[1]);
  return kernels::plan(sized);
}

}  // namespace moetrt::plugins
