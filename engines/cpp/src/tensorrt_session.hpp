// A rank's graph on TensorRT: one device, a context for each profile, caches in place, steps of one token as a CUDA graph.
#pragma once

#include <NvInfer.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>

#include "moetrt/session.hpp"
#include "nccl.hpp"

namespace moetrt {

// Keeps what TensorRT says is wrong, for the error that tells of it. Its threads may be several.
class TensorRtLog : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  // What was said since the last time, or that nothing was.
  std::string take();

 private:
  std::mutex lock_;
  std::string told_;
};

// TensorRT's library, loaded once a process.
struct TensorRt {
  TensorRtLog log;
  void* (*create_runtime)(void* logger, int version) = nullptr;

  // Throws Error: libnvinfer of the headers' version cannot be loaded.
  static TensorRt& get();
};

// Where a rank is in the set: its device, and its place among those that it meets.
struct Seat {
  int device = 0;
  std::shared_ptr<Ring> ring;  // none where it meets nobody
  std::size_t place = 0;
  std::filesystem::path plugins;  // the library that its graphs need; empty where they need none
};

// Throws Error: TensorRT does not take the plugins, the engine cannot be deserialised here, or it is not what its manifest says.
std::unique_ptr<Session> open_tensorrt(const Opening& opening, const Seat& seat);

}  // namespace moetrt
