#include "ort_session.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <optional>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime/onnxruntime_cxx_api.h>

#include "cuda.hpp"
#include "library.hpp"
#include "moetrt/error.hpp"
#include "ports.hpp"

namespace moetrt {
namespace {

constexpr std::size_t kKept = 8;  // shapes of run whose buffers are kept
constexpr const char* kCpu = "CPUExecutionProvider";
constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kGraph = "gpu_graph_id";  // which captured graph a run is of
constexpr const char* kEager = "-1";            // of none

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

Ort::Value view(const Array& array, const Ort::MemoryInfo& memory) {
  return Ort::Value::CreateTensor(memory, array.data(), array.bytes(), array.shape().data(), array.shape().size(), element_type(array.dtype()));
}

GraphOptimizationLevel level(const std::string& name) {
  static const std::map<std::string, GraphOptimizationLevel> known{{"all", ORT_ENABLE_ALL}, {"basic", ORT_ENABLE_BASIC}, {"none", ORT_DISABLE_ALL}};
  const auto found = known.find(name);
  if (found == known.end()) throw Error("there is no graph optimisation level '" + name + "'.", "Known are all, basic and none.");
  return found->second;
}

// What a session's allocator gives, on whatever device that is.
class SessionMemory : public Memory {
 public:
  SessionMemory(const Ort::Session& session, Place place)
      : place_(std::move(place)), info_(place_.name.c_str(), OrtDeviceAllocator, place_.device, OrtMemTypeDefault), from_(session, info_) {}

  std::shared_ptr<std::byte> allocate(std::size_t bytes) override {
    try {
      std::shared_ptr<std::byte> held(static_cast<std::byte*>(from_.Alloc(bytes)), [this](std::byte* memory) { from_.Free(memory); });
      const std::vector<std::byte> zeros(bytes);
      place_.write(held.get(), zeros.data(), bytes);
      return held;
    } catch (const Ort::Exception& cause) {
      throw Error("ONNX Runtime has no memory on " + place_.name + " for an array of " + std::to_string(bytes) + " bytes: " + cause.what(), "Ask for fewer tokens or rows.");
    }
  }
  void write(std::byte* there, const std::byte* host, std::size_t bytes) override { place_.write(there, host, bytes); }
  void read(std::byte* host, const std::byte* there, std::size_t bytes) override { place_.read(host, there, bytes); }
  [[nodiscard]] const Ort::MemoryInfo& info() const { return info_; }

 private:
  Place place_;
  Ort::MemoryInfo info_;
  Ort::Allocator from_;
};

// Where sessions of this provider keep what the host does not read.
std::optional<Place> place_of(const Provider& provider) {
  if (provider.name != kCuda) return std::nullopt;
  const auto option = [&](const char* name, const std::string& usual) {
    const auto found = provider.options.find(name);
    return found == provider.options.end() ? usual : found->second;
  };
  int device = 0;
  const std::string told = option("device_id", "0");
  const auto [end, failed] = std::from_chars(told.data(), told.data() + told.size(), device);
  if (failed != std::errc{} || end != told.data() + told.size() || device < 0)
    throw Error("device_id is '" + told + "'; a CUDA device's number is expected.", "Build the engines again.");
  const auto memory = std::make_shared<cuda::DeviceMemory>(device);
  return Place{"Cuda", device, [memory](std::byte* there, const std::byte* host, std::size_t bytes) { memory->write(there, host, bytes); },
               [memory](std::byte* host, const std::byte* there, std::size_t bytes) { memory->read(host, there, bytes); }, option("enable_cuda_graph", "0") == "1"};
}

void add_cuda(Ort::SessionOptions& options, const Provider& provider) {
  OrtCUDAProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&made));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> held(made, Ort::GetApi().ReleaseCUDAProviderOptions);
  std::vector<const char*> names, values;
  for (const auto& [name, value] : provider.options) {
    names.push_back(name.c_str());
    values.push_back(value.c_str());
  }
  if (!names.empty()) Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(made, names.data(), values.data(), names.size()));
  options.AppendExecutionProvider_CUDA_V2(*made);
}

// In Python's words.
void add_ops(Ort::SessionOptions& options, const std::filesystem::path& library) {
  try {
    options.RegisterCustomOpsLibrary(library.c_str());
  } catch (const Ort::Exception& cause) {
    throw Error("ONNX Runtime " + Runtime::version() + " does not take the ops of " + library.string() + ": " + cause.what(),
                "Give an ONNX Runtime that is as new as the headers that the library was compiled with.");
  }
}

// In Python's words, and as Python does before anything else.
void require(const Provider& provider) {
  const std::vector<std::string> there = Ort::GetAvailableProviders();
  if (std::find(there.begin(), there.end(), provider.name) == there.end())
    throw Error("these engines run on ONNX Runtime's " + provider.name + ", which this onnxruntime " + Runtime::version() + " does not have.",
                "pip install 'moetrt[ort-cuda]' on a machine with a CUDA device, or build with --backend ort.");
  if (provider.name != kCpu && provider.name != kCuda)
    throw Error("these engines run on ONNX Runtime's " + provider.name + ", which this runtime does not open.", std::string("Known are ") + kCpu + " and " + kCuda + ".");
}

}  // namespace

void Runtime::open(const std::string& library) {
  const std::lock_guard<std::mutex> lock(opening);
  if (base) return;
  const std::string name = library.empty() ? "libonnxruntime.so.1" : library;
  const Library opened("ONNX Runtime's library", {name}, "Give its path; the Python wheel has it as onnxruntime/capi/libonnxruntime.so.*.");
  const auto entry = opened.symbol<const OrtApiBase*(ORT_API_CALL*)()>("OrtGetApiBase");
  const OrtApiBase* found = entry ? entry() : nullptr;
  const OrtApi* api = found ? found->GetApi(ORT_API_VERSION) : nullptr;
  if (!api) throw Error(name + " is no ONNX Runtime of version 1." + std::to_string(ORT_API_VERSION) + " or newer.", "Give another library.");
  Ort::InitApi(api);
  base = found;
}

std::string Runtime::version() { return base ? base->GetVersionString() : ""; }

namespace {

class OrtSession : public Session {
 public:
  OrtSession(const Opening& opening, const Manifest& rank, int threads, const std::filesystem::path& library, std::optional<Place> place);

  void run(Values& values, const States& states) override;
  [[nodiscard]] std::shared_ptr<Memory> memory() const override { return device_; }

 private:
  // What a run of one shape is bound to, from run to run.
  struct Prepared {
    Ort::IoBinding binding;
    Values results;
    Values inputs;  // the places of their own that inputs of a captured step have
    Ort::RunOptions options;
  };

  void open(const Manifest& rank, int threads, bool alone, const std::filesystem::path& library, const Provider& provider);
  Prepared& prepare(const std::vector<std::int64_t>& key, const Values& values, const Values& states);
  void capture(Prepared& step, const Sizes& sizes);
  [[nodiscard]] Ort::Value bound(const Array& array) const { return view(array, array.on_host() ? host_ : device_->info()); }

  Opening opening_;
  Ports ports_;
  bool captures_;
  Ort::MemoryInfo host_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Session session_{nullptr};
  std::shared_ptr<SessionMemory> device_;
  std::map<std::vector<std::int64_t>, Prepared> prepared_;
  std::uint64_t bound_to_ = 0;
  int graphs_ = 0;
};

OrtSession::OrtSession(const Opening& opening, const Manifest& rank, int threads, const std::filesystem::path& library, std::optional<Place> place)
    : opening_(opening), ports_(opening_.signature, opening.graph.string()), captures_(place && place->captures) {
  const Provider provider = rank.providers.empty() ? Provider{kCpu, {}} : rank.providers.front();
  require(provider);
  try {
    open(rank, threads, opening.alone, library, provider);
    if (place) device_ = std::make_shared<SessionMemory>(session_, std::move(*place));
  } catch (const Ort::Exception& cause) {
    throw Error("ONNX Runtime cannot open " + ports_.where + ": " + cause.what(), "bf16 graphs build for TensorRT; on a CPU export with --precision fp32.");
  }
}

void OrtSession::open(const Manifest& rank, int threads, bool alone, const std::filesystem::path& library, const Provider& provider) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.SetInterOpNumThreads(1);
  options.SetLogSeverityLevel(3);
  options.SetGraphOptimizationLevel(level(rank.optimization));
  for (const auto& [name, value] : rank.config) options.AddConfigEntry(name.c_str(), value.c_str());
  if (!alone) options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  if (provider.name == kCuda) add_cuda(options, provider);
  if (!library.empty()) add_ops(options, library);
  session_ = Ort::Session(environment(), ports_.where.c_str(), options);
}

OrtSession::Prepared& OrtSession::prepare(const std::vector<std::int64_t>& key, const Values& values, const Values& states) {
  const auto there = prepared_.find(key);
  if (there != prepared_.end()) return there->second;
  Prepared made{Ort::IoBinding(session_), {}, {}, Ort::RunOptions()};
  for (const auto& [input, output] : ports_.states) {
    const Array& buffer = ports_.state(input, states);
    made.binding.BindInput(input.c_str(), bound(buffer));
    made.binding.BindOutput(output.c_str(), bound(buffer));
  }
  const Sizes sizes = ports_.sizes(values);
  for (const Tensor* result : ports_.results) {
    // A captured step has nothing of the host's among what it writes.
    const bool here = !device_ || (!captures_ && opening_.hosted.count(result->name));
    Array array(result->dtype, ports_.shape(*result, sizes), here ? nullptr : device_);
    made.binding.BindOutput(result->name.c_str(), bound(array));
    made.results.emplace(result->name, std::move(array));
  }
  if (captures_) capture(made, sizes);
  return prepared_.emplace(key, std::move(made)).first->second;
}

// Steps of one token get places for their inputs, and a graph's number; longer ones run kernel by kernel.
void OrtSession::capture(Prepared& step, const Sizes& sizes) {
  if (!Ports::is_one_token(sizes)) {
    step.options.AddConfigEntry(kGraph, kEager);
    return;
  }
  for (const Tensor* input : ports_.inputs) {
    const Array& place = step.inputs.emplace(input->name, Array(input->dtype, ports_.shape(*input, sizes), device_)).first->second;
    step.binding.BindInput(input->name.c_str(), bound(place));
  }
  step.options.AddConfigEntry(kGraph, std::to_string(++graphs_).c_str());
}

void OrtSession::run(Values& values, const States& states) {
  if (bound_to_ != states.id || prepared_.size() > kKept) {
    prepared_.clear();
    bound_to_ = states.id;
  }
  const std::vector<std::int64_t> key = ports_.key(values);
  try {
    Prepared& step = prepare(key, values, states.buffers);
    for (const Tensor* input : ports_.inputs) {
      const Array& value = values.at(input->name);
      const auto place = step.inputs.find(input->name);
      if (place == step.inputs.end())
        step.binding.BindInput(input->name.c_str(), bound(value));
      else
        place->second.fill(value.host());
    }
    session_.Run(step.options, step.binding);
    for (const auto& [name, array] : step.results) values[name] = array;
  } catch (const Ort::Exception& cause) {
    throw Error(ports_.where + " cannot run: " + cause.what());
  }
}

class OrtOpener : public Opener {
 public:
  OrtOpener(int threads, std::filesystem::path library, std::optional<Place> place) : threads_(threads), library_(std::move(library)), place_(std::move(place)) {}

  std::unique_ptr<Session> open(const Opening& opening, const Manifest& rank) override {
    Runtime::open();  // before a session has members: ONNX Runtime's own, even empty ones, call its library
    const std::optional<Place> place = place_ || rank.providers.empty() ? place_ : place_of(rank.providers.front());
    return std::make_unique<OrtSession>(opening, rank, threads_, library_, place);
  }

 private:
  int threads_;
  std::filesystem::path library_;
  std::optional<Place> place_;
};

}  // namespace

std::unique_ptr<Opener> ort_opener(int threads, const std::filesystem::path& library) { return std::make_unique<OrtOpener>(threads, library, std::nullopt); }
std::unique_ptr<Opener> ort_opener_in(Place place, int threads) { return std::make_unique<OrtOpener>(threads, std::filesystem::path(), std::move(place)); }

}  // namespace moetrt
