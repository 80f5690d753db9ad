// The kernels behind a C interface on host memory, for tests in Python: built with the emulator, or with CUDA and then run on the first device.
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator.hpp"
#include "experts.hpp"
#include "moetrt/error.hpp"
#include "route.hpp"

#ifdef MOETRT_ON_DEVICE
#include <cuda_runtime_api.h>
#else
#include <cstdlib>
#endif

using namespace moetrt::kernels;

namespace {

constexpr int kReference = -1;  // other values of `how` are the emulator's order

// Memory of exactly so many bytes where kernels run, filled from the host, so that what is read or written beyond it is seen by a checker.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
#ifdef MOETRT_ON_DEVICE
    if (cudaMalloc(&data_, bytes ? bytes : 1) != cudaSuccess) throw moetrt::Error("there is no device memory for " + std::to_string(bytes) + " bytes.");
#else
    if (posix_memalign(&data_, 16, bytes ? bytes : 1)) throw moetrt::Error("there is no memory for " + std::to_string(bytes) + " bytes.");
    std::memset(data_, 0xff, bytes);
#endif
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
#ifdef MOETRT_ON_DEVICE
    cudaFree(data_);
#else
    std::free(data_);
#endif
  }
  void fill(const void* from) {
#ifdef MOETRT_ON_DEVICE
    cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice);
#else
    std::memcpy(data_, from, bytes_);
#endif
  }
  void fetch(void* into) const {
#ifdef MOETRT_ON_DEVICE
    cudaMemcpy(into, data_, bytes_, cudaMemcpyDeviceToHost);
#else
    std::memcpy(into, data_, bytes_);
#endif
  }
  [[nodiscard]] void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

// The arrays of one call, each with a twin where kernels run.
class Twins {
 public:
  template <typename Number>
  void in(const Number*& pointer, std::size_t bytes) {
    if (!pointer) return;
    all_.push_back(std::make_unique<Memory>(bytes));
    all_.back()->fill(pointer);
    pointer = static_cast<const Number*>(all_.back()->data());
  }
  template <typename Number>
  void out(Number*& pointer, std::size_t bytes) {
    all_.push_back(std::make_unique<Memory>(bytes));
    results_.emplace_back(all_.back().get(), pointer);
    pointer = static_cast<Number*>(all_.back()->data());
  }
  void fetch() const {
#ifdef MOETRT_ON_DEVICE
    if (const cudaError_t failed = cudaDeviceSynchronize(); failed != cudaSuccess) throw moetrt::Error(std::string("the kernels failed: ") + cudaGetErrorString(failed) + ".");
#endif
    for (const auto& [memory, pointer] : results_) memory->fetch(pointer);
  }

 private:
  std::vector<std::unique_ptr<Memory>> all_;
  std::vector<std::pair<Memory*, void*>> results_;
};

// :returns: null, or what went wrong.
const char* answered(const std::function<void()>& work) {
  static thread_local std::string problem;
  try {
    work();
    return nullptr;
  } catch (const moetrt::Error& error) {
    problem = std::string(error.what()) + " " + error.hint();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return problem.c_str();
}

std::size_t times(int a, int b, std::size_t bytes) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * bytes; }

void run_route(int how, const RouteParams& params, RoutePointers at) {
  const RoutePlan planned = plan(params);
  if (how == kReference) return reference(params, at);
  emulator::order = static_cast<unsigned>(how);
  Twins twins;
  twins.in(at.logits, times(params.tokens, params.experts, 4));
  twins.in(at.bias, times(1, params.experts, 4));
  twins.out(at.experts, times(params.tokens, params.top_k, 8));
  twins.out(at.weights, times(params.tokens, params.top_k, 4));
  launch(planned, at, nullptr);
  twins.fetch();
}

void run_experts(int how, int tiling, const ExpertsParams& params, ExpertsPointers at) {
  const ExpertsPlan planned = tiling < 0 ? plan(params) : plan(params, tiling);
  if (how == kReference) return reference(params, at);
  emulator::order = static_cast<unsigned>(how);
  const std::size_t number = params.numbers == Numbers::float32 ? 4 : 2, weight = params.activations == Activations::floats ? number : 1;
  Twins twins;
  twins.in(at.x, times(params.tokens, params.hidden, number));
  twins.in(at.experts, times(params.tokens, params.top_k, 8));
  twins.in(at.weights, times(params.tokens, params.top_k, 4));
  twins.in(at.gate_up, times(params.experts, 2 * params.width, weight) * static_cast<std::size_t>(params.hidden));
  twins.in(at.down, times(params.experts, params.hidden, weight) * static_cast<std::size_t>(params.width));
  twins.in(at.gate_up_scale, times(params.experts, 2 * params.width, number));
  twins.in(at.down_scale, times(params.experts, params.hidden, number));
  twins.in(at.x_scale, number);
  twins.in(at.h_scale, times(1, params.experts, number));
  twins.out(at.y, times(params.tokens, params.hidden, number));
  const Memory workspace(planned.workspace.bytes);
  at.workspace = workspace.data();
  launch(planned, at, nullptr);
  twins.fetch();
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) const char* moetrt_kernels_route(int how, const RouteParams* params, const RoutePointers* pointers) {
  return answered([&] { run_route(how, *params, *pointers); });
}

__attribute__((visibility("default"))) const char* moetrt_kernels_experts(int how, int tiling, const ExpertsParams* params, const ExpertsPointers* pointers) {
  return answered([&] { run_experts(how, tiling, *params, *pointers); });
}

// On the device's own memory and on a stream: for benchmarks.
__attribute__((visibility("default"))) const char* moetrt_kernels_launch(const ExpertsParams* params, const ExpertsPointers* pointers, void* stream) {
  return answered([&] { launch(plan(*params), *pointers, stream); });
}

// Bytes; 0 where there is no plan.
__attribute__((visibility("default"))) std::size_t moetrt_kernels_workspace(const ExpertsParams* params) {
  std::size_t bytes = 0;
  answered([&] { bytes = plan(*params).workspace.bytes; });
  return bytes;
}

// The plan as text, or the problem, which begins with "Error: ".
__attribute__((visibility("default"))) const char* moetrt_kernels_plan(int tiling, const ExpertsParams* params) {
  static thread_local std::string text;
  const char* problem = answered([&] { text = (tiling < 0 ? plan(*params) : plan(*params, tiling)).text(); });
  if (problem) text = std::string("Error: ") + problem;
  return text.c_str();
}
}
