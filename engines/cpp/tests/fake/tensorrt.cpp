// TensorRT for tests. Its engine adds: a token is kept in the cache, and what follows is the sum, modulo the vocabulary, of all tokens so far;
// of those at its own positions alone where several ranks meet. An engine's file says `vocab context ranks rank fails_at`.
#include <NvInfer.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include "fake.hpp"
#include "stubs.hpp"
#include "world.hpp"

namespace fake {

void unexpected(const char* name) {
  std::cerr << "the fake TensorRT has no " << name << "\n";
  std::abort();
}

struct Plan {
  int vocab = 0, context = 0, ranks = 1, rank = 0, fails_at = 0, runs = 0;
};

const std::map<std::string, std::pair<TensorIOMode, DataType>> kTensors{
    {"token_ids", {TensorIOMode::kINPUT, DataType::kINT64}}, {"start", {TensorIOMode::kINPUT, DataType::kINT64}},        {"select", {TensorIOMode::kINPUT, DataType::kINT64}},
    {"a.cache", {TensorIOMode::kINPUT, DataType::kFLOAT}},   {"a.cache.out", {TensorIOMode::kOUTPUT, DataType::kFLOAT}}, {"logits", {TensorIOMode::kOUTPUT, DataType::kFLOAT}}};

bool meet(const Communicator* communicator, double& value) {
  const std::shared_ptr<Group> group = communicator->group;  // the communicator itself may be aborted meanwhile
  return group->sum(value);
}

class Context : public IExecutionContext, public ExecutionContextStubs {
 public:
  explicit Context(Plan& plan) : plan_(plan) { mImpl = this; }
  IExecutionContext* getPImpl() noexcept override { return this; }
  void setDeviceMemoryV2(void*, int64_t size) noexcept override { world().tell("scratch " + std::to_string(size)); }
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override { return profile_ = profile, true; }
  bool setInputShape(char const* name, Dims const& shape) noexcept override { return shapes_[name] = shape, true; }
  bool setTensorAddress(char const* name, void* address) noexcept override {
    world().tell("bind " + std::to_string(profile_) + " " + name);
    return kTensors.count(name) && (addresses_[name] = address);
  }
  bool join(Communicator* communicator) {
    communicator_ = communicator;
    world().tell("setCommunicator " + std::to_string(communicator->rank));
    double nothing = 0;
    return meet(communicator, nothing);  // returns when all have come
  }
#if NV_TENSORRT_MAJOR >= 11
  bool setCommunicator(void* communicator) noexcept override { return join(static_cast<Communicator*>(communicator)); }
#endif
  bool enqueueV3(cudaStream_t stream) noexcept override {
    world().tell("enqueue " + std::to_string(profile_));
    const auto addresses = addresses_;
    const auto shapes = shapes_;
    const auto work = [this, addresses, shapes] { return compute(addresses, shapes); };
    auto& captured = reinterpret_cast<Stream*>(stream)->captured;
    if (!captured) return work();
    captured->push_back(work);
    return true;
  }

 private:
  bool compute(std::map<std::string, void*> at, std::map<std::string, Dims> shapes) {
    if (++plan_.runs == plan_.fails_at || at["a.cache"] != at["a.cache.out"]) return false;
    const auto tokens = shapes["token_ids"].d[1], selected = shapes["select"].d[1];
    for (int64_t row = 0; row < shapes["token_ids"].d[0]; ++row) {
      const int64_t start = static_cast<int64_t*>(at["start"])[row];
      float* cache = static_cast<float*>(at["a.cache"]) + row * plan_.context;
      for (int64_t token = 0; token < tokens; ++token) cache[start + token] = static_cast<float>(static_cast<int64_t*>(at["token_ids"])[row * tokens + token]);
      for (int64_t place = 0; place < selected; ++place) {
        double sum = 0;
        for (int64_t position = 0; position <= start + static_cast<int64_t*>(at["select"])[row * selected + place]; ++position)
          sum += position % plan_.ranks == plan_.rank ? cache[position] : 0;
        if (plan_.ranks > 1 && !meet(communicator_, sum)) return false;
        float* logits = static_cast<float*>(at["logits"]) + (row * selected + place) * plan_.vocab;
        for (int token = 0; token < plan_.vocab; ++token) logits[token] = token == static_cast<int64_t>(sum) % plan_.vocab;
      }
    }
    return true;
  }

  Plan& plan_;
  int profile_ = -1;
  Communicator* communicator_ = nullptr;
  std::map<std::string, void*> addresses_;
  std::map<std::string, Dims> shapes_;
};

class Engine : public ICudaEngine, public CudaEngineStubs {
 public:
  explicit Engine(Plan plan) : plan_(plan) { mImpl = this; }
  ICudaEngine* getPImpl() noexcept override { return this; }
  int32_t getNbOptimizationProfiles() const noexcept override { return 2; }
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(kTensors.size()); }
  int64_t getDeviceMemorySizeV2() const noexcept override { return 4096; }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override { return kTensors.count(name) ? kTensors.at(name).first : TensorIOMode::kNONE; }
  DataType getTensorDataType(char const* name) const noexcept override { return kTensors.at(name).second; }
  // As engines/backends/tensorrt.py asks for them: prompts, and single tokens up to two.
  Dims getProfileShape(char const* name, int32_t profile, OptProfileSelector select) const noexcept override {
    const bool most = select == OptProfileSelector::kMAX;
    const int64_t tokens = !most ? 1 : profile == 0 ? plan_.context : 2, rows = most ? 4 : 1;
    if (name == std::string("a.cache")) return Dims{3, {rows, plan_.context, 1}};
    return name == std::string("start") ? Dims{1, {rows}} : Dims{2, {rows, tokens}};
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(plan_) : nullptr;
  }

 private:
  Plan plan_;
};

// A runtime's own: what is loaded into it no other runtime has. Of a file called so it takes no plugins.
class Registry : public PluginRegistryStubs {
 public:
  PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
    world().tell(std::string("loadLibrary ") + path);
    if (std::string(path).find("refused") != std::string::npos) return nullptr;
    loaded += std::string(" ") + path;
    return this;
  }

  std::string loaded;
};

class Runtime : public IRuntime, public RuntimeStubs {
 public:
  explicit Runtime(ILogger* log) : log_(log) { mImpl = this; }
  IRuntime* getPImpl() noexcept override { return this; }
  IPluginRegistry& getPluginRegistry() noexcept override { return registry_; }
  ICudaEngine* deserializeCudaEngine(void const* data, size_t size) noexcept override {
    world().tell("deserialize" + registry_.loaded);
    std::istringstream text(std::string(static_cast<const char*>(data), size));
    Plan plan;
    if (text >> plan.vocab >> plan.context >> plan.ranks >> plan.rank >> plan.fails_at) return new Engine(plan);
    log_->log(ILogger::Severity::kERROR, "this is no plan");
    return nullptr;
  }

 private:
  ILogger* log_;
  Registry registry_;
};

}  // namespace fake

extern "C" {
void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  return version == NV_TENSORRT_VERSION ? static_cast<nvinfer1::IRuntime*>(new fake::Runtime(static_cast<nvinfer1::ILogger*>(logger))) : nullptr;
}
bool fake_set_communicator(void* context, void* communicator) {
  return static_cast<fake::Context*>(static_cast<nvinfer1::IExecutionContext*>(context))->join(static_cast<fake::Communicator*>(communicator));
}
}
