// An op as a TensorRT plugin: what TensorRT asks, answered by the op's own few functions. No arithmetic; that is in kernels/.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fields.hpp"
#include "moetrt/error.hpp"

namespace moetrt::plugins {

constexpr const char* kVersion = "1";  // of what is written into engines: another where attributes, inputs or their meaning change
constexpr const char* kNamespace = "moetrt";

using nvinfer1::DataType;
using nvinfer1::Dims;

// What goes in and out, in order, and how large it is.
struct Operand {
  DataType type;
  Dims dims;
};
using Operands = std::vector<Operand>;

// TensorRT's callbacks must not throw: the message goes to stderr, and TensorRT says which layer it was.
template <typename Work>
bool answered(const char* op, Work work) noexcept {
  try {
    work();
    return true;
  } catch (const Error& error) {
    std::cerr << "moetrt plugin " << op << ": " << error.what() << " " << error.hint() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "moetrt plugin " << op << ": " << error.what() << "\n";
  }
  return false;
}

// `Op` has what the calls below say of it: kName, kOutputs, attributes(), a constructor from Fields, output_types, output_dims, takes, workspace, enqueue.
template <typename Op>
class Plugin final : public nvinfer1::IPluginV3, public nvinfer1::IPluginV3OneCore, public nvinfer1::IPluginV3OneBuild, public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Fields fields) : fields_(std::move(fields)), op_(fields_) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  nvinfer1::IPluginV3* clone() noexcept override {
    Plugin* made = nullptr;
    answered(Op::kName, [&] { made = new Plugin(fields_); });
    return made;
  }

  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  std::int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }
  std::int32_t getOutputDataTypes(DataType* types, std::int32_t, const DataType* inputs, std::int32_t count) const noexcept override {
    return status([&] { op_.output_types(std::span(inputs, static_cast<std::size_t>(count)), types); });
  }
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t, const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs, std::int32_t,
                               nvinfer1::IExprBuilder& builder) noexcept override {
    return status([&] { op_.output_dims(inputs, outputs, builder); });
  }
  bool supportsFormatCombination(std::int32_t place, const nvinfer1::DynamicPluginTensorDesc* all, std::int32_t inputs, std::int32_t) noexcept override {
    const nvinfer1::PluginTensorDesc& asked = all[place].desc;
    return asked.format == nvinfer1::TensorFormat::kLINEAR && op_.takes(place, asked.type, all[0].desc.type, inputs);
  }
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t count, const nvinfer1::DynamicPluginTensorDesc*, std::int32_t) noexcept override {
    return status([&] { std::ignore = op_.workspace(largest(inputs, count)); });
  }
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t count, const nvinfer1::DynamicPluginTensorDesc*,
                               std::int32_t) const noexcept override {
    std::size_t bytes = 0;
    answered(Op::kName, [&] { bytes = op_.workspace(largest(inputs, count)); });
    return bytes;
  }

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, std::int32_t count, const nvinfer1::PluginTensorDesc*, std::int32_t) noexcept override {
    inputs_ = count;
    return 0;
  }
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const nvinfer1::PluginTensorDesc*, const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override {
    return status([&] {
      Operands now;
      for (std::int32_t place = 0; place < inputs_; ++place) now.push_back({descriptions[place].type, descriptions[place].dims});
      op_.enqueue(now, inputs, outputs, workspace, stream);
    });
  }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    const bool made = answered(Op::kName, [&] {
      written_ = Fields::written(fields_.all());
      collection_ = {static_cast<std::int32_t>(written_.size()), written_.data()};
    });
    return made ? &collection_ : nullptr;
  }

 private:
  template <typename Work>
  static std::int32_t status(Work work) noexcept {
    return answered(Op::kName, work) ? 0 : -1;
  }
  static Operands largest(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t count) {
    Operands made;
    for (const auto& input : std::span(inputs, static_cast<std::size_t>(count))) made.push_back({input.desc.type, input.max});
    return made;
  }

  Fields fields_;
  Op op_;
  std::int32_t inputs_ = 0;  // TensorRT tells how many with their shapes, not when it runs
  std::vector<nvinfer1::PluginField> written_;
  nvinfer1::PluginFieldCollection collection_{};
};

template <typename Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() : attributes_(Op::attributes()), fields_(Fields::written(attributes_)), collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept override {
    Plugin<Op>* made = nullptr;
    answered(Op::kName, [&] { made = new Plugin<Op>(Fields(Op::kName, Op::attributes(), fields)); });
    return made;
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  std::vector<Attribute> attributes_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace moetrt::plugins
