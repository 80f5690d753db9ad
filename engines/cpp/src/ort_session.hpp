// Graphs on ONNX Runtime, on a CPU or a CUDA device.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "moetrt/session.hpp"

namespace moetrt {

// A device's memory as ONNX Runtime knows it, and how it is copied to and from: what no CPU can reach is taken from the session's allocator.
struct Place {
  std::string name = "Cuda";
  int device = 0;
  std::function<void(std::byte* there, const std::byte* host, std::size_t bytes)> write;
  std::function<void(std::byte* host, const std::byte* there, std::size_t bytes)> read;
  // Steps of one token are captured and replayed: what they read and write stays where it was, results too.
  bool captures = false;
};

// The first provider of each rank decides where its graphs run. :param threads: within one operator.
// :param library: of the ops that graphs need beyond ONNX Runtime's own; empty where they need none.
std::unique_ptr<Opener> ort_opener(int threads, const std::filesystem::path& library);

// The same on a CPU, with values in `place` as if it were a device's: what tests have where there is none.
std::unique_ptr<Opener> ort_opener_in(Place place, int threads);

}  // namespace moetrt
