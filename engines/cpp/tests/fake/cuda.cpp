// CUDA's runtime and NCCL for tests: device memory is the host's, streams do at once what they are given, and a graph is a list of it.
#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "world.hpp"

namespace fake {

World& world() {
  static World made;
  return made;
}

void World::tell(const std::string& call) {
  const std::lock_guard<std::mutex> held(lock);
  calls += call + "\n";
}

bool Group::sum(double& value) {
  std::unique_lock<std::mutex> held(lock);
  if (aborted) return false;
  const int round = rounds;
  total += value;
  if (++arrived == size) {
    result = total;
    total = 0;
    arrived = 0;
    ++rounds;
    met.notify_all();
  } else {
    met.wait(held, [&] { return aborted || rounds != round; });
    if (rounds == round) return false;
  }
  value = result;
  return true;
}

}  // namespace fake

using fake::Communicator, fake::Graph, fake::Stream, fake::world;

extern "C" {

const char* fake_calls() {
  static std::string told;
  const std::lock_guard<std::mutex> held(world().lock);
  told.swap(world().calls);
  world().calls.clear();
  return told.c_str();
}
void fake_devices(int count) { world().devices = count; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = world().devices, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device < world().devices ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xab, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemset(void* memory, int value, size_t bytes) { return std::memset(memory, value, bytes), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) { return std::memcpy(to, from, bytes), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) { return std::memcpy(to, from, bytes), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = reinterpret_cast<cudaStream_t>(new Stream), cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete reinterpret_cast<Stream*>(stream), cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) { return reinterpret_cast<Stream*>(stream)->captured.emplace(), cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  auto& captured = reinterpret_cast<Stream*>(stream)->captured;
  *graph = reinterpret_cast<cudaGraph_t>(new Graph(std::move(*captured)));
  captured.reset();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* replay, cudaGraph_t graph, unsigned long long) {
  world().tell("instantiate");
  return *replay = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph))), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t replay, cudaStream_t) {
  world().tell("replay");
  for (const auto& work : *reinterpret_cast<Graph*>(replay))
    if (!work()) return cudaErrorUnknown;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t replay) { return delete reinterpret_cast<Graph*>(replay), cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "as the test wants it"; }

int ncclCommInitAll(Communicator** made, int count, const int* devices) {
  const auto group = std::make_shared<fake::Group>(count);
  std::string told = "ncclCommInitAll";
  for (int rank = 0; rank < count; ++rank) {
    made[rank] = new Communicator{group, rank};
    told += " " + std::to_string(devices[rank]);
  }
  world().tell(told);
  return 0;
}
int ncclCommAbort(Communicator* communicator) {
  world().tell("ncclCommAbort " + std::to_string(communicator->rank));
  const auto group = communicator->group;
  delete communicator;
  const std::lock_guard<std::mutex> held(group->lock);
  group->aborted = true;
  group->met.notify_all();
  return 0;
}
int ncclCommDestroy(Communicator* communicator) { return delete communicator, 0; }
const char* ncclGetErrorString(int) { return "as the test wants it"; }
}
