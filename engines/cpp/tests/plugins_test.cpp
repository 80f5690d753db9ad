// The plugins as TensorRT uses them: made from fields, asked, cloned, written, read again, and run, over kernels that are emulated on a CPU.
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "experts_plugin.hpp"
#include "route_plugin.hpp"

using namespace moetrt;
using namespace moetrt::plugins;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

namespace {

PluginField integer(const char* name, const std::int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }
PluginField text(const char* name, const char* value, bool with_zero = true) {
  return {name, value, PluginFieldType::kCHAR, static_cast<std::int32_t>(std::strlen(value)) + with_zero};
}

PluginTensorDesc described(DataType type, std::vector<std::int64_t> sizes) {
  PluginTensorDesc made{};
  made.type = type;
  made.format = TensorFormat::kLINEAR;
  made.dims.nbDims = static_cast<std::int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), made.dims.d);
  return made;
}

DynamicPluginTensorDesc dynamic(const PluginTensorDesc& largest) { return {largest, largest.dims, largest.dims, largest.dims}; }

template <typename Op>
std::unique_ptr<nvinfer1::IPluginV3> created(std::vector<PluginField> fields) {
  Creator<Op> creator;
  const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("a layer", &collection, TensorRTPhase::kBUILD));
}

template <typename Face>
Face& face(nvinfer1::IPluginV3& plugin, PluginCapabilityType type) {
  return *static_cast<Face*>(plugin.getCapabilityInterface(type));
}
nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin) { return face<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin) { return face<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

const std::int32_t kTwo = 2, kFour = 4, kOne = 1, kZero = 0, kEight = 8;
const float kScale = 2.5f;

std::vector<PluginField> route_fields() {
  return {integer("top_k", kTwo),
          integer("groups", kFour),
          integer("top_groups", kTwo),
          text("scoring", "sigmoid"),
          text("group_score", "top2"),
          integer("normalize", kOne),
          {"scale", &kScale, PluginFieldType::kFLOAT32, 1}};
}

}  // namespace

TEST_CASE("a route is run as its plain loops, also after it was written and read again") {
  const auto plugin = created<Route>(route_fields());
  REQUIRE(plugin);
  const PluginFieldCollection* written = runtime(*plugin).getFieldsToSerialize();
  Creator<Route> creator;
  const std::unique_ptr<nvinfer1::IPluginV3> again(creator.createPlugin("a layer", written, TensorRTPhase::kRUNTIME));
  const std::unique_ptr<nvinfer1::IPluginV3> running(runtime(*again).attachToContext(nullptr));

  std::vector<float> logits(3 * 16), bias(16, 0.0f), weights(6), wanted_weights(6);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7) % 13) / 5.0f - 1.0f;
  bias[5] = 0.5f;
  std::vector<std::int64_t> experts(6), wanted(6);
  const std::array inputs{described(DataType::kFLOAT, {3, 16}), described(DataType::kFLOAT, {16})};
  const std::array outputs{described(DataType::kINT64, {3, 2}), described(DataType::kFLOAT, {3, 2})};
  const std::array<const void*, 2> in{logits.data(), bias.data()};
  const std::array<void*, 2> out{experts.data(), weights.data()};
  CHECK(runtime(*running).onShapeChange(inputs.data(), 2, outputs.data(), 2) == 0);
  CHECK(runtime(*running).enqueue(inputs.data(), outputs.data(), in.data(), out.data(), nullptr, nullptr) == 0);

  kernels::RouteParams params{3, 16, 2, 4, 2, kernels::Scoring::sigmoid, kernels::GroupScore::top2, true, 2.5f};
  kernels::reference(params, {logits.data(), bias.data(), wanted.data(), wanted_weights.data()});
  CHECK(experts == wanted);
  CHECK(weights == wanted_weights);
}

TEST_CASE("experts of int8 are run as their plain loops, in the workspace that was asked for") {
  const auto plugin = created<QuantizedExperts>({integer("first_expert", kTwo), integer("all_experts", kEight), text("activations", "token", false)});
  REQUIRE(plugin);
  constexpr std::size_t kTokens = 5, kHidden = 32, kWidth = 16, kExperts = 3;
  std::vector<float> x(kTokens * kHidden), weights(kTokens * 2), gate_up_scale(kExperts * 2 * kWidth), down_scale(kExperts * kHidden), y(x.size()), wanted(x.size());
  std::vector<std::int64_t> experts(kTokens * 2);
  std::vector<std::int8_t> gate_up(kExperts * 2 * kWidth * kHidden), down(kExperts * kHidden * kWidth);
  std::uint32_t seed = 1;
  const auto next = [&] { return static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 16777216.0f; };
  for (auto* all : {&x, &weights, &gate_up_scale, &down_scale})
    for (float& value : *all) value = next() / 8.0f;
  for (auto* all : {&gate_up, &down})
    for (std::int8_t& value : *all) value = static_cast<std::int8_t>(static_cast<int>(next() * 255.0f) - 127);
  for (std::size_t i = 0; i < experts.size(); ++i) experts[i] = static_cast<std::int64_t>(i * 3 % 8);

  const std::array inputs{described(DataType::kFLOAT, {kTokens, kHidden}),
                          described(DataType::kINT64, {kTokens, 2}),
                          described(DataType::kFLOAT, {kTokens, 2}),
                          described(DataType::kINT8, {kExperts, 2 * kWidth, kHidden}),
                          described(DataType::kFLOAT, {kExperts, 1, 2 * kWidth}),
                          described(DataType::kINT8, {kExperts, kHidden, kWidth}),
                          described(DataType::kFLOAT, {kExperts, 1, kHidden})};
  const std::array outputs{described(DataType::kFLOAT, {kTokens, kHidden})};
  std::vector<DynamicPluginTensorDesc> asked;
  for (const auto& one : inputs) asked.push_back(dynamic(one));
  asked.push_back(dynamic(outputs[0]));
  for (std::int32_t place = 0; place < 8; ++place) CHECK(build(*plugin).supportsFormatCombination(place, asked.data(), 7, 1));
  CHECK(build(*plugin).configurePlugin(asked.data(), 7, asked.data() + 7, 1) == 0);
  std::vector<std::byte> workspace(build(*plugin).getWorkspaceSize(asked.data(), 7, asked.data() + 7, 1));
  CHECK(workspace.size() > 0);

  const std::unique_ptr<nvinfer1::IPluginV3> running(runtime(*plugin).attachToContext(nullptr));
  const std::array<const void*, 7> in{x.data(), experts.data(), weights.data(), gate_up.data(), gate_up_scale.data(), down.data(), down_scale.data()};
  const std::array<void*, 1> out{y.data()};
  CHECK(runtime(*running).onShapeChange(inputs.data(), 7, outputs.data(), 1) == 0);
  CHECK(runtime(*running).enqueue(inputs.data(), outputs.data(), in.data(), out.data(), workspace.data(), nullptr) == 0);

  kernels::ExpertsParams params{kTokens, 2, kHidden, kWidth, kExperts, 8, 2, kernels::Numbers::float32, kernels::Activations::int8_by_token};
  kernels::reference(params, {x.data(), experts.data(), weights.data(), gate_up.data(), down.data(), gate_up_scale.data(), down_scale.data(), nullptr, nullptr, wanted.data()});
  CHECK(y == wanted);
}

TEST_CASE("types and layouts that kernels do not take are refused") {
  const auto plugin = created<Experts>({integer("first_expert", kZero), integer("all_experts", kEight)});
  REQUIRE(plugin);
  const auto taken = [&](DataType x, DataType weight, TensorFormat format = TensorFormat::kLINEAR) {
    std::vector<DynamicPluginTensorDesc> all{dynamic(described(x, {4, 32})),          dynamic(described(DataType::kINT64, {4, 2})), dynamic(described(DataType::kFLOAT, {4, 2})),
                                             dynamic(described(weight, {8, 32, 32})), dynamic(described(weight, {8, 32, 16})),      dynamic(described(x, {4, 32}))};
    all[3].desc.format = format;
    bool made = true;
    for (std::int32_t place = 0; place < 6; ++place) made = build(*plugin).supportsFormatCombination(place, all.data(), 5, 1) && made;
    return made;
  };
  CHECK(taken(DataType::kHALF, DataType::kHALF));
  CHECK(taken(DataType::kBF16, DataType::kBF16));
  CHECK_FALSE(taken(DataType::kFLOAT, DataType::kFLOAT));
  CHECK_FALSE(taken(DataType::kHALF, DataType::kINT8));
  CHECK_FALSE(taken(DataType::kHALF, DataType::kHALF, TensorFormat::kCHW32));
}

TEST_CASE("sizes that kernels do not take are refused when the engine is built") {
  const auto plugin = created<Route>(route_fields());
  REQUIRE(plugin);
  const DynamicPluginTensorDesc odd = dynamic(described(DataType::kFLOAT, {3, 18}));
  CHECK(build(*plugin).configurePlugin(&odd, 1, nullptr, 2) != 0);
}

TEST_CASE("fields that are missing, unknown, of another type or of another meaning make no plugin") {
  CHECK_FALSE(created<Experts>({integer("first_expert", kZero)}));
  CHECK_FALSE(created<Experts>({integer("first_expert", kZero), integer("all_experts", kEight), integer("experts_in_all", kEight)}));
  CHECK_FALSE(created<Experts>({integer("first_expert", kZero), text("all_experts", "8")}));
  CHECK_FALSE(created<QuantizedExperts>({integer("first_expert", kZero), integer("all_experts", kEight), text("activations", "float")}));
  const std::int64_t wide = 8;
  CHECK(created<Experts>({integer("first_expert", kZero), {"all_experts", &wide, PluginFieldType::kINT64, 1}}));
  CHECK_FALSE(created<Experts>({}));
}
