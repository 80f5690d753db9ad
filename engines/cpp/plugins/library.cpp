// What TensorRT looks for in a library of plugins: IPluginRegistry::loadLibrary calls it.
#include <array>

#include "experts_plugin.hpp"
#include "route_plugin.hpp"

namespace {

// Made when first asked for: what goes wrong then has somewhere to go.
template <typename Op>
nvinfer1::IPluginCreatorInterface* creator() {
  static moetrt::plugins::Creator<Op> made;
  return &made;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static std::array<nvinfer1::IPluginCreatorInterface*, 3> all{};
  const bool made =
      moetrt::plugins::answered("library", [] { all = {creator<moetrt::plugins::Route>(), creator<moetrt::plugins::Experts>(), creator<moetrt::plugins::QuantizedExperts>()}; });
  count = made ? static_cast<std::int32_t>(all.size()) : 0;
  return all.data();
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// Of the plugins: what engines record, and loaders ask for.
__attribute__((visibility("default"))) const char* moetrt_plugins_version() { return moetrt::plugins::kVersion; }
}
