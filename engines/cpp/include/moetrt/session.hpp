// One graph of one rank, opened on ONNX Runtime: values in by name, values out by name, caches in place.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "moetrt/array.hpp"
#include "moetrt/manifest.hpp"

namespace moetrt {

using Values = std::map<std::string, Array>;

// ONNX Runtime's shared library, loaded once a process. Any version from 1.21 on serves; equal numbers need equal versions.
class Runtime {
 public:
  // :param library: its path or name; when empty, `libonnxruntime.so.1` as the loader finds it.
  // Throws Error: it cannot be loaded, or is too old.
  static void open(const std::string& library = {});
  static std::string version();
};

class Session {
 public:
  // `path`: the graph's file, its weights where it says. `rank`: whose options it is opened with.
  // `threads`: within one operator. `alone`: no other graph runs between two runs of this one, so that its threads may wait spinning.
  Session(const std::filesystem::path& path, const Signature& signature, const Manifest& rank, int threads, bool alone);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) = delete;

  // Adds the graph's results to `values`, as views of buffers that the next run of the same shape writes over.
  // `states`: buffers by input name, read and written in place.
  void run(Values& values, Values& states);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace moetrt
