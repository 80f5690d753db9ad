// The op Route as a plugin: logits and, maybe, bias in; experts and weights out.
#pragma once

#include "../kernels/route.hpp"
#include "plugin.hpp"

namespace moetrt::plugins {

class Route {
 public:
  static constexpr const char* kName = "Route";
  static constexpr std::int32_t kOutputs = 2;
  static std::vector<Attribute> attributes();

  explicit Route(const Fields& fields);

  void output_types(std::span<const DataType> inputs, DataType* types) const;
  void output_dims(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs, nvinfer1::IExprBuilder& builder) const;
  [[nodiscard]] bool takes(std::int32_t place, DataType type, DataType first, std::int32_t inputs) const;
  [[nodiscard]] std::size_t workspace(const Operands& inputs) const;
  void enqueue(const Operands& operands, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) const;

 private:
  [[nodiscard]] kernels::RoutePlan planned(const Operands& inputs) const;

  kernels::RouteParams params_;
};

}  // namespace moetrt::plugins
