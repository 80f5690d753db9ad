// The few functions of CUDA's runtime that sessions on a device need, without its headers.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "moetrt/array.hpp"

namespace moetrt::cuda {

using Stream = void*;
using Graph = void*;
using Replay = void*;  // an instantiated graph

constexpr int kToDevice = 1, kToHost = 2;  // cudaMemcpyKind
constexpr unsigned kApart = 1;             // cudaStreamNonBlocking
constexpr int kThisThread = 1;             // cudaStreamCaptureModeThreadLocal

// CUDA's runtime, loaded once a process. Its functions give 0 or a code.
struct Functions {
  int (*get_device_count)(int*);
  int (*set_device)(int);
  int (*allocate)(void**, std::size_t);
  int (*free)(void*);
  int (*clear)(void*, int, std::size_t);
  int (*copy)(void*, const void*, std::size_t, int);
  int (*copy_on)(void*, const void*, std::size_t, int, Stream);
  int (*create_stream)(Stream*, unsigned);
  int (*destroy_stream)(Stream);
  int (*wait)(Stream);
  int (*begin_capture)(Stream, int);
  int (*end_capture)(Stream, Graph*);
  int (*instantiate)(Replay*, Graph, unsigned long long);
  int (*launch)(Replay, Stream);
  int (*destroy_graph)(Graph);
  int (*destroy_replay)(Replay);
  int (*last_error)();
  const char* (*describe)(int);

  // Throws Error: CUDA's runtime cannot be loaded.
  static const Functions& get();
};

// Throws Error unless `code` is 0. `what`: what was tried, and for whom.
void check(int code, const std::string& what);

// How many devices there are; none where CUDA's runtime or a driver for it is absent.
int devices();

// A device's memory.
class DeviceMemory : public Memory {
 public:
  explicit DeviceMemory(int device) : device_(device) {}
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void write(std::byte* there, const std::byte* host, std::size_t bytes) override;
  void read(std::byte* host, const std::byte* there, std::size_t bytes) override;

 private:
  int device_;
};

}  // namespace moetrt::cuda
