// What TensorRT looks for in a library of plugins: IPluginRegistry::loadLibrary calls it.
#include "experts_plugin.hpp"
#include "route_plugin.hpp"

namespace {

moetrt::plugins::Creator<moetrt::plugins::Route> route;
moetrt::plugins::Creator<moetrt::plugins::Experts> experts;
moetrt::plugins::Creator<moetrt::plugins::QuantizedExperts> quantized_experts;
nvinfer1::IPluginCreatorInterface* const creators[] = {&route, &experts, &quantized_experts};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  count = std::size(creators);
  return creators;
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// Of the plugins: what engines record, and loaders ask for.
__attribute__((visibility("default"))) const char* moetrt_plugins_version() { return moetrt::plugins::kVersion; }
}
