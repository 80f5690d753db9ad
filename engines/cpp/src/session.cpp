#include "moetrt/session.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime/onnxruntime_cxx_api.h>

#include "moetrt/error.hpp"

namespace moetrt {
namespace {

constexpr std::size_t kKept = 8;  // shapes of run whose buffers are kept

std::mutex opening;
const OrtApiBase* base = nullptr;

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "moetrt");
  return env;
}

ONNXTensorElementDataType element_type(const std::string& dtype) {
  static const std::map<std::string, ONNXTensorElementDataType> known{{"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                                                                      {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
                                                                      {"bfloat16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16},
                                                                      {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}};
  return known.at(dtype);
}

Ort::Value view(const Array& array) {
  static const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, array.data(), array.bytes(), array.shape().data(), array.shape().size(), element_type(array.dtype()));
}

GraphOptimizationLevel level(const std::string& name) {
  static const std::map<std::string, GraphOptimizationLevel> known{{"all", ORT_ENABLE_ALL}, {"basic", ORT_ENABLE_BASIC}, {"none", ORT_DISABLE_ALL}};
  const auto found = known.find(name);
  if (found == known.end()) throw Error("there is no graph optimisation level '" + name + "'.", "Known are all, basic and none.");
  return found->second;
}

}  // namespace

void Runtime::open(const std::string& library) {
  const std::lock_guard<std::mutex> lock(opening);
  if (base) return;
  const std::string name = library.empty() ? "libonnxruntime.so.1" : library;
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    throw Error("ONNX Runtime's library cannot be loaded: " + std::string(dlerror()) + ".", "Give its path; the Python wheel has it as onnxruntime/capi/libonnxruntime.so.*.");
  const auto entry = reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(dlsym(handle, "OrtGetApiBase"));
  const OrtApiBase* found = entry ? entry() : nullptr;
  const OrtApi* api = found ? found->GetApi(ORT_API_VERSION) : nullptr;
  if (!api) throw Error(name + " is no ONNX Runtime of version 1." + std::to_string(ORT_API_VERSION) + " or newer.", "Give another library.");
  Ort::InitApi(api);
  base = found;
}

std::string Runtime::version() { return base ? base->GetVersionString() : ""; }

struct Session::Parts {
  // What a run of one shape is bound to, from run to run.
  struct Prepared {
    Ort::IoBinding binding;
    Values results;
  };

  Signature signature;
  std::string where;
  Ort::Session session{nullptr};
  std::vector<const Tensor*> inputs, results;
  std::map<std::string, std::string> states;
  std::map<std::vector<std::int64_t>, Prepared> prepared;
  const Values* bound = nullptr;

  Prepared& prepare(const std::vector<std::int64_t>& key, const Values& values, Values& state) {
    const auto there = prepared.find(key);
    if (there != prepared.end()) return there->second;
    Prepared made{Ort::IoBinding(session), {}};
    for (const auto& [input, output] : states) {
      const auto buffer = state.find(input);
      if (buffer == state.end()) throw Error(where + " reads the state '" + input + "', which the cache lacks.");
      made.binding.BindInput(input.c_str(), view(buffer->second));
      made.binding.BindOutput(output.c_str(), view(buffer->second));
    }
    const std::map<std::string, std::int64_t> sizes = measured(values);
    for (const Tensor* result : results) {
      Array array(result->dtype, resolved(*result, sizes));
      made.binding.BindOutput(result->name.c_str(), view(array));
      made.results.emplace(result->name, std::move(array));
    }
    return prepared.emplace(key, std::move(made)).first->second;
  }

  // Symbolic dimension → its size in these inputs.
  [[nodiscard]] std::map<std::string, std::int64_t> measured(const Values& values) const {
    std::map<std::string, std::int64_t> sizes;
    for (const Tensor* input : inputs) {
      const auto& shape = values.at(input->name).shape();
      for (std::size_t axis = 0; axis < shape.size() && axis < input->shape.size(); ++axis)
        if (const auto* name = std::get_if<std::string>(&input->shape[axis])) sizes[*name] = shape[axis];
    }
    return sizes;
  }

  [[nodiscard]] std::vector<std::int64_t> resolved(const Tensor& tensor, const std::map<std::string, std::int64_t>& sizes) const {
    std::vector<std::int64_t> shape;
    for (const Dim& dim : tensor.shape) {
      const auto* name = std::get_if<std::string>(&dim);
      const auto size = name ? sizes.find(*name) : sizes.end();
      if (name && size == sizes.end()) throw Error(where + " makes " + tensor.name + ", whose dimension '" + *name + "' no input has.");
      shape.push_back(name ? size->second : std::get<std::int64_t>(dim));
    }
    return shape;
  }
};

Session::Session(const std::filesystem::path& path, const Signature& signature, const Manifest& rank, int threads, bool alone) : parts_(std::make_unique<Parts>()) {
  Runtime::open();
  Parts& parts = *parts_;
  parts.signature = signature;
  parts.where = path.string();
  for (const State& state : parts.signature.states) parts.states[state.input] = state.output;
  const auto is_state_output = [&](const std::string& name) {
    return std::any_of(parts.states.begin(), parts.states.end(), [&](const auto& state) { return state.second == name; });
  };
  for (const Tensor& input : parts.signature.inputs)
    if (!parts.states.count(input.name)) parts.inputs.push_back(&input);
  for (const Tensor& output : parts.signature.outputs)
    if (!is_state_output(output.name)) parts.results.push_back(&output);
  try {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.SetInterOpNumThreads(1);
    options.SetLogSeverityLevel(3);
    options.SetGraphOptimizationLevel(level(rank.optimization));
    for (const auto& [name, value] : rank.config) options.AddConfigEntry(name.c_str(), value.c_str());
    if (!alone) options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    parts.session = Ort::Session(environment(), path.c_str(), options);
  } catch (const Ort::Exception& cause) {
    throw Error("ONNX Runtime cannot open " + path.string() + ": " + cause.what());
  }
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;

void Session::run(Values& values, Values& states) {
  Parts& parts = *parts_;
  if (parts.bound != &states || parts.prepared.size() > kKept) {
    parts.prepared.clear();
    parts.bound = &states;
  }
  std::vector<std::int64_t> key;
  for (const Tensor* input : parts.inputs) {
    const auto found = values.find(input->name);
    if (found == values.end()) throw Error(parts.where + " reads " + input->name + ", which nothing before it makes.", "The schedule is damaged; build it again.");
    if (found->second.dtype() != input->dtype || found->second.shape().size() != input->shape.size())
      throw Error(parts.where + " reads " + input->name + ", which is of another dtype or rank.", "The schedule is damaged; build it again.");
    key.insert(key.end(), found->second.shape().begin(), found->second.shape().end());
  }
  try {
    Parts::Prepared& step = parts.prepare(key, values, states);
    for (const Tensor* input : parts.inputs) step.binding.BindInput(input->name.c_str(), view(values.at(input->name)));
    parts.session.Run(Ort::RunOptions{nullptr}, step.binding);
    for (const auto& [name, array] : step.results) values[name] = array;
  } catch (const Ort::Exception& cause) {
    throw Error(parts.where + " cannot run: " + cause.what());
  }
}

}  // namespace moetrt
