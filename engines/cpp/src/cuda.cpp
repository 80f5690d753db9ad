#include "cuda.hpp"

#include "library.hpp"
#include "moetrt/error.hpp"

namespace moetrt::cuda {
namespace {

Functions load() {
  const Library library("CUDA's runtime", {"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
                        "Put its folder on LD_LIBRARY_PATH; the Python wheel nvidia-cuda-runtime has it.");
  Functions made{};
  library.find("cudaGetDeviceCount", made.get_device_count);
  library.find("cudaSetDevice", made.set_device);
  library.find("cudaMalloc", made.allocate);
  library.find("cudaFree", made.free);
  library.find("cudaMemset", made.clear);
  library.find("cudaMemcpy", made.copy);
  library.find("cudaMemcpyAsync", made.copy_on);
  library.find("cudaStreamCreateWithFlags", made.create_stream);
  library.find("cudaStreamDestroy", made.destroy_stream);
  library.find("cudaStreamSynchronize", made.wait);
  library.find("cudaStreamBeginCapture", made.begin_capture);
  library.find("cudaStreamEndCapture", made.end_capture);
  library.find("cudaGraphInstantiateWithFlags", made.instantiate);  // the one form that versions 11 to 13 share
  library.find("cudaGraphLaunch", made.launch);
  library.find("cudaGraphDestroy", made.destroy_graph);
  library.find("cudaGraphExecDestroy", made.destroy_replay);
  library.find("cudaGetLastError", made.last_error);
  library.find("cudaGetErrorString", made.describe);
  return made;
}

}  // namespace

const Functions& Functions::get() {
  static const Functions found = load();
  return found;
}

void check(int code, const std::string& what) {
  if (code == 0) return;
  const Functions& calls = Functions::get();
  calls.last_error();  // forgets it: the next call is to tell of itself
  throw Error(what + ": " + calls.describe(code) + " (CUDA error " + std::to_string(code) + ").");
}

int devices() {
  try {
    int count = 0;
    return Functions::get().get_device_count(&count) == 0 ? count : 0;
  } catch (const Error&) {
    return 0;
  }
}

std::shared_ptr<std::byte> DeviceMemory::allocate(std::size_t bytes) {
  const Functions& calls = Functions::get();
  const std::string what = "no " + std::to_string(bytes) + " bytes on CUDA device " + std::to_string(device_);
  check(calls.set_device(device_), what);
  void* memory = nullptr;
  check(calls.allocate(&memory, bytes), what);
  std::shared_ptr<std::byte> held(static_cast<std::byte*>(memory), [&calls](std::byte* there) { calls.free(there); });
  check(calls.clear(memory, 0, bytes), what);
  check(calls.wait(nullptr), what);  // streams of others do not wait for the default one
  return held;
}

void DeviceMemory::write(std::byte* there, const std::byte* host, std::size_t bytes) {
  const std::string what = "copying to CUDA device " + std::to_string(device_);
  check(Functions::get().copy(there, host, bytes, kToDevice), what);
  check(Functions::get().wait(nullptr), what);  // it may still be on its way
}

void DeviceMemory::read(std::byte* host, const std::byte* there, std::size_t bytes) {
  check(Functions::get().copy(host, there, bytes, kToHost), "copying from CUDA device " + std::to_string(device_));
}

}  // namespace moetrt::cuda
