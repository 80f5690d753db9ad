// The records beside the engines, as docs/formats.md says: read strictly, and only what running needs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace moetrt {

// A dimension: a size, or the name of one that varies (batch, tokens, context, selected).
using Dim = std::variant<std::int64_t, std::string>;

struct Tensor {
  std::string name;
  std::string dtype;  // float32, float16, bfloat16 or int64
  std::vector<Dim> shape;
};

// A buffer that a graph reads and writes in place: bound as `input` and as `output`.
struct State {
  std::string input;
  std::string output;
};

struct Signature {
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<State> states;
};

struct Launch {
  std::string graph;
};
struct AllReduce {
  std::string value;
  std::string result;
};
struct AllGather {
  std::string value;
  std::string result;
};
struct Send {
  std::vector<std::string> values;
};
struct Receive {
  std::vector<std::string> values;
};
using Step = std::variant<Launch, AllReduce, AllGather, Send, Receive>;

struct Assembly {
  std::vector<Step> steps;
  std::map<std::string, std::string> graphs;  // launch name → file
  std::map<std::string, Signature> signatures;

  // What the same tensor rank of the next stage gets.
  [[nodiscard]] std::vector<std::string> sent() const;
};

// What a file was when its manifest was written.
struct Stamp {
  std::uintmax_t bytes = 0;
  std::string sha256;
};

// One of ONNX Runtime's execution providers, and what it is opened with.
struct Provider {
  std::string name;
  std::map<std::string, std::string> options;
};

// The library of our own kernels that engines were built with, TensorRT's plugins or ONNX Runtime's ops; without it they cannot be opened.
struct PluginLibrary {
  std::string name;     // of its file
  std::string version;  // of its plugins or ops
  std::string sha256;

  bool operator==(const PluginLibrary&) const = default;
};

// One rank's engines: `rank-NN/manifest.json`.
struct Manifest {
  std::filesystem::path folder;
  std::string backend;
  int rank = 0;
  int tensor = 1;
  int pipeline = 1;
  std::int64_t vocab = 0;
  std::optional<std::int64_t> bos;  // put before every prompt that is text
  std::vector<std::int64_t> eos;
  std::int64_t max_context = 0;
  std::int64_t max_batch = 0;
  Assembly assembly;
  std::vector<std::pair<std::string, std::string>> config;  // ONNX Runtime's session configuration entries
  std::string optimization = "all";
  std::vector<Provider> providers;  // the preferred first
  std::optional<PluginLibrary> plugins;
  std::map<std::string, Stamp> files;
  std::vector<std::pair<std::string, std::string>> identity;  // what the ranks of a set must share, by name

  // One rank's record. Throws Error: it is absent, damaged, of another kind or version, or has fields that nobody knows.
  static Manifest read(const std::filesystem::path& path);

  // All ranks of a folder, in order. Throws Error: ranks are missing or were not made for each other, or a file is not there at its size.
  static std::vector<Manifest> read_set(const std::filesystem::path& folder);
};

// All ranks of a set as one graph: `joined.json`, beside `joined.onnx`.
struct Joined {
  std::filesystem::path graph;
  Signature signature;

  // The joined graph of these ranks. Nothing where there is none, or one of other graphs than theirs: it is derived, and left alone then.
  static std::optional<Joined> find(const std::filesystem::path& folder, const std::vector<Manifest>& ranks);
};

// A manifest from the text of its file; `where` names it in errors. What a fuzzer feeds.
Manifest parse_manifest(const std::string& text, const std::string& where);

}  // namespace moetrt
