// One graph of one rank, opened: values in by name, values out by name, caches in place. What opens it is its backend's opener.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "moetrt/array.hpp"
#include "moetrt/manifest.hpp"

namespace moetrt {

using Values = std::map<std::string, Array>;

// Buffers by input name, read and written in place.
struct States {
  std::uint64_t id = 0;  // never given twice: what is bound to buffers is bound to these
  Values buffers;
};

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
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  // Adds the graph's results to `values`, as views of buffers that the next run of the same shape writes over.
  virtual void run(Values& values, const States& states) = 0;

  // Where its states are to lie; nothing for the host.
  [[nodiscard]] virtual std::shared_ptr<Memory> memory() const { return nullptr; }
};

// How engines are opened.
struct LoadOptions {
  int threads = 0;                // of the host in all, which ranks have in turn; the cores at hand when 0
  std::filesystem::path plugins;  // the library of kernels that they were built with; when empty, the file of its name beside them
};

// A graph to be opened.
struct Opening {
  std::filesystem::path graph;  // its file; weights lie where it says
  Signature signature;
  std::set<std::string> hosted;  // results that the host reads; others may stay where they are made
  bool alone = true;             // no other graph runs between two runs of this one, so that its threads may wait spinning
};

// How the engines of one set are opened and run.
class Opener {
 public:
  Opener() = default;
  Opener(const Opener&) = delete;
  Opener& operator=(const Opener&) = delete;
  virtual ~Opener() = default;

  // Throws Error: the graph cannot be opened, or not here. `rank`: whose options it is opened with.
  virtual std::unique_ptr<Session> open(const Opening& opening, const Manifest& rank) = 0;

  // Whether the ranks of a stage meet inside their graphs: then each has a thread of its own, which opens and runs what is its rank's.
  [[nodiscard]] virtual bool together() const { return false; }

  // Called before ranks that meet are set to work: makes anew what an earlier failure has spoiled.
  virtual void prepare() {}

  // Lets ranks go on that wait for one which failed. Called from another thread than theirs.
  virtual void release() noexcept {}
};

}  // namespace moetrt
