// The ops Experts and QuantizedExperts as plugins. Weights lie by rows of outputs: (experts, 2 * width, hidden) and (experts, hidden, width).
#pragma once

#include "../kernels/experts.hpp"
#include "plugin.hpp"

namespace moetrt::plugins {

// What both share. Inputs of Experts: x, experts, weights, gate_up, down; of QuantizedExperts: x, experts, weights, gate_up, gate_up_scale, down,
// down_scale and, where activations are static, x_scale, h_scale.
class ExpertsBase {
 public:
  static constexpr std::int32_t kOutputs = 1;

  void output_types(std::span<const DataType> inputs, DataType* types) const { types[0] = inputs[0]; }
  void output_dims(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs, nvinfer1::IExprBuilder&) const { outputs[0] = inputs[0]; }
  [[nodiscard]] std::size_t workspace(const Operands& inputs) const { return planned(inputs).workspace.bytes; }

 protected:
  ExpertsBase(const Fields& fields, kernels::Activations activations);
  // Where what both have lies; the other inputs stand at other places.
  static kernels::ExpertsPointers common(const void* const* inputs, void* const* outputs, void* workspace);
  [[nodiscard]] kernels::ExpertsPlan planned(const Operands& inputs) const;

  kernels::ExpertsParams params_;
};

class Experts : public ExpertsBase {
 public:
  static constexpr const char* kName = "Experts";
  static std::vector<Attribute> attributes();

  explicit Experts(const Fields& fields) : ExpertsBase(fields, kernels::Activations::floats) {}
  [[nodiscard]] bool takes(std::int32_t place, DataType type, DataType first, std::int32_t inputs) const;
  void enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const;
};

class QuantizedExperts : public ExpertsBase {
 public:
  static constexpr const char* kName = "QuantizedExperts";
  static std::vector<Attribute> attributes();

  explicit QuantizedExperts(const Fields& fields);
  [[nodiscard]] bool takes(std::int32_t place, DataType type, DataType first, std::int32_t inputs) const;
  void enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const;
};

}  // namespace moetrt::plugins
