#include "moetrt/manifest.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "moetrt/error.hpp"

namespace moetrt {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFile = "manifest.json";
constexpr const char* kKind = "engine-rank";
constexpr int kVersion = 1;
constexpr int kDeepest = 64;      // objects within objects: what is deeper would overflow the stack when shown
constexpr int kMostRanks = 4096;  // beyond any plan: a record that says more is damaged
constexpr const char* kDamaged = "The file is damaged or was edited; make it anew.";

// Text as Python's repr shows it, at most 60 characters of it.
std::string shown(const Json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text.resize(60);
  return "'" + text + "'";
}

// A record's object, and where it stands in its file.
class Object {
 public:
  Object(const Json& data, std::string where) : data_(data), where_(std::move(where)) {
    if (!data.is_object()) expected("an object");
  }

  // Refuses fields that are not among `known`.
  const Object& only(const std::set<std::string>& known) const {
    for (const auto& [name, value] : data_.items())
      if (!known.count(name)) throw Error(where_ + " has the unknown field '" + name + "'.", "It was written by another version of moetrt; make it anew.");
    return *this;
  }

  [[nodiscard]] const Json& at(const std::string& name) const {
    const auto found = data_.find(name);
    if (found == data_.end()) throw Error(where_ + " lacks the field '" + name + "'.", "The file is damaged or of another version; make it anew.");
    return *found;
  }

  [[nodiscard]] bool has(const std::string& name) const { return data_.contains(name) && !data_.at(name).is_null(); }
  [[nodiscard]] Object object(const std::string& name) const { return {at(name), where_ + "." + name}; }

  [[nodiscard]] std::string text(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_string()) throw wrong(name, value, "str");
    return value.get<std::string>();
  }

  [[nodiscard]] std::int64_t number(const std::string& name, std::int64_t low, std::int64_t high) const {
    const Json& value = at(name);
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))) throw wrong(name, value, "int");
    const auto found = value.get<std::int64_t>();
    if (found < low || found > high) throw wrong(name, value, "a number from " + std::to_string(low) + " to " + std::to_string(high));
    return found;
  }

  [[nodiscard]] const Json& list(const std::string& name) const {
    const Json& value = at(name);
    if (!value.is_array()) throw wrong(name, value, "a list");
    return value;
  }

  [[nodiscard]] const std::string& where() const { return where_; }
  [[nodiscard]] const Json& data() const { return data_; }

 private:
  [[noreturn]] void expected(const std::string& wanted) const { throw Error(where_ + " is " + shown(data_) + ", where " + wanted + " is expected.", kDamaged); }
  [[nodiscard]] Error wrong(const std::string& name, const Json& value, const std::string& wanted) const {
    return Error(where_ + "." + name + " is " + shown(value) + ", where " + wanted + " is expected.", kDamaged);
  }

  const Json& data_;
  std::string where_;
};

// Throws Json::exception: it is no JSON. Throws Error: it is too deep.
Json parsed(const std::string& text, const std::string& where) {
  return Json::parse(text, [&](int depth, Json::parse_event_t, const Json&) {
    if (depth > kDeepest) throw Error(where + " is nested deeper than " + std::to_string(kDeepest) + " objects.", kDamaged);
    return true;
  });
}

std::vector<std::string> texts(const Object& from, const std::string& name) {
  std::vector<std::string> found;
  for (const Json& value : from.list(name)) {
    if (!value.is_string()) throw Error(from.where() + "." + name + " holds " + shown(value) + ", where str is expected.", kDamaged);
    found.push_back(value.get<std::string>());
  }
  return found;
}

// A file beside the manifest: a name, never a way out of the folder.
std::string file_name(const std::string& name, const std::string& where) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos || name.find('\\') != std::string::npos || name.find('\0') != std::string::npos)
    throw Error(where + " names the file '" + name + "', which does not lie beside it.", kDamaged);
  return name;
}

Tensor read_tensor(const Json& data, const std::string& where) {
  const Object from(data, where);
  from.only({"name", "dtype", "shape"});
  Tensor tensor{from.text("name"), from.text("dtype"), {}};
  for (const Json& dim : from.list("shape")) {
    if (dim.is_string())
      tensor.shape.emplace_back(dim.get<std::string>());
    else if (dim.is_number_integer() && dim.get<std::int64_t>() >= 0 && dim.get<std::int64_t>() <= INT32_MAX)
      tensor.shape.emplace_back(dim.get<std::int64_t>());
    else
      throw Error(where + ".shape holds " + shown(dim) + ", where a size or a name is expected.", kDamaged);
  }
  return tensor;
}

std::vector<Tensor> read_tensors(const Object& from, const std::string& name) {
  std::vector<Tensor> found;
  for (const Json& value : from.list(name)) found.push_back(read_tensor(value, from.where() + "." + name + "[" + std::to_string(found.size()) + "]"));
  return found;
}

Signature read_signature(const Object& from) {
  from.only({"inputs", "outputs", "states"});
  Signature signature{read_tensors(from, "inputs"), read_tensors(from, "outputs"), {}};
  for (const Json& value : from.list("states")) {
    const Object state(value, from.where() + ".states[" + std::to_string(signature.states.size()) + "]");
    state.only({"input", "output"});
    signature.states.push_back({state.text("input"), state.text("output")});
  }
  const auto there = [](const std::vector<Tensor>& tensors, const std::string& name) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.name == name; });
  };
  for (const State& state : signature.states)
    if (!there(signature.inputs, state.input) || !there(signature.outputs, state.output))
      throw Error(from.where() + " has the state '" + state.input + "', which is no input with an output.", kDamaged);
  return signature;
}

Step read_step(const Json& data, const std::string& where) {
  const Object from(data, where);
  const std::string kind = from.text("kind");
  if (kind == "launch") return from.only({"kind", "graph"}), Launch{from.text("graph")};
  if (kind == "all_reduce") return from.only({"kind", "value", "result"}), AllReduce{from.text("value"), from.text("result")};
  if (kind == "all_gather") return from.only({"kind", "value", "result"}), AllGather{from.text("value"), from.text("result")};
  if (kind == "send") return from.only({"kind", "values"}), Send{texts(from, "values")};
  if (kind == "receive") return from.only({"kind", "values"}), Receive{texts(from, "values")};
  throw Error(where + ".kind is '" + kind + "', where launch, all_reduce, all_gather, send or receive is expected.", kDamaged);
}

// Every graph has a signature and every signature a graph; a state is one graph's, as its buffer has one shape.
void require_whole(const Assembly& made, const std::string& where) {
  const auto damaged = [&](const char* what, const std::string& name, const char* how) { return Error(where + " has the " + what + " '" + name + "' " + how + ".", kDamaged); };
  std::set<std::string> states;
  for (const auto& [name, file] : made.graphs)
    if (!made.signatures.count(name)) throw damaged("graph", name, "without a signature");
  for (const auto& [name, signature] : made.signatures) {
    if (!made.graphs.count(name)) throw damaged("signature", name, "without a graph");
    for (const State& state : signature.states)
      if (!states.insert(state.input).second) throw damaged("state", state.input, "twice");
  }
}

Assembly read_assembly(const Object& from) {
  from.only({"steps", "graphs", "signatures"});
  Assembly made;
  for (const Json& value : from.list("steps")) made.steps.push_back(read_step(value, from.where() + ".steps[" + std::to_string(made.steps.size()) + "]"));
  const Object graphs = from.object("graphs"), signatures = from.object("signatures");
  for (const auto& [name, file] : graphs.data().items()) made.graphs[name] = file_name(graphs.text(name), graphs.where());
  for (const auto& [name, signature] : signatures.data().items()) made.signatures[name] = read_signature(signatures.object(name));
  for (const Step& step : made.steps) {
    const auto* launch = std::get_if<Launch>(&step);
    if (launch && (!made.graphs.count(launch->graph) || !made.signatures.count(launch->graph)))
      throw Error(from.where() + " launches '" + launch->graph + "', which has no graph or no signature.", kDamaged);
  }
  require_whole(made, from.where());
  return made;
}

PluginLibrary read_plugins(const Object& from) {
  from.only({"library", "version", "sha256"});
  return {file_name(from.text("library"), from.where()), from.text("version"), from.text("sha256")};
}

void read_options(const Object& from, Manifest& made) {
  if (from.has("plugins")) made.plugins = read_plugins(from.object("plugins"));
  if (from.has("config")) {
    const Object config = from.object("config");
    for (const auto& [name, value] : config.data().items()) made.config.emplace_back(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  if (from.has("graph_optimization_level")) made.optimization = from.text("graph_optimization_level");
  if (!from.has("providers")) return;
  for (const Json& value : from.list("providers")) {
    const bool told = value.is_array() && value.size() == 2;
    const Json& name = told ? value.front() : value;
    if (!name.is_string()) throw Error(from.where() + ".providers holds " + shown(value) + ", where a name is expected.", kDamaged);
    Provider provider{name.get<std::string>(), {}};
    if (told) {
      const Object options(value.back(), from.where() + ".providers");
      for (const auto& [option, set] : options.data().items()) provider.options[option] = set.is_string() ? set.get<std::string>() : set.dump();
    }
    made.providers.push_back(std::move(provider));
  }
}

std::string optional_text(const Object& from, const std::string& name) { return from.has(name) ? from.text(name) : "None"; }

// As Python compares ranks: what they must share, in the order in which it is told.
void read_identity(const Object& from, Manifest& made) {
  made.identity.emplace_back("--fast", from.object("options").data().contains("fast") ? "True" : "False");
  for (const auto& [what, name] :
       std::vector<std::pair<std::string, std::string>>{{"plan", "plan_hash"}, {"precision", "precision"}, {"attention form", "attention"}, {"backend", "backend"}})
    made.identity.emplace_back(what, from.text(name));
  made.identity.emplace_back("--max-context", std::to_string(made.max_context));
  made.identity.emplace_back("--max-batch", std::to_string(made.max_batch));
  std::string calibration = "None";
  if (from.has("quantization")) {
    const Object made_by = from.object("quantization");
    calibration = made_by.text("scheme") + " " + optional_text(made_by, "table") + " " + made_by.at("smooth").dump() + " " + made_by.list("float_segments").dump();
  }
  made.identity.emplace_back("quantisation", calibration);
  made.identity.emplace_back("checkpoint", optional_text(from.object("source"), "fingerprint"));
}

std::string rank_folder(int rank) { return (rank < 10 ? "rank-0" : "rank-") + std::to_string(rank); }

std::string shortened(const std::string& value) { return value.size() == 64 ? value.substr(0, 12) : value; }

void require_alike(const Manifest& record, const Manifest& first, const fs::path& folder) {
  for (std::size_t place = 0; place < record.identity.size(); ++place) {
    const auto& [what, mine] = record.identity[place];
    const std::string& other = first.identity[place].second;
    if (mine != other)
      throw Error(
          (folder / rank_folder(record.rank)).string() + " is of another " + what + " than " + rank_folder(first.rank) + ": " + shortened(mine) + ", not " + shortened(other) + ".",
          "Ranks of one set must come from one checkpoint and one plan; make the odd rank again with --rank.");
  }
}

void check_files(const Manifest& record) {
  for (const auto& [name, stamp] : record.files) {
    const fs::path path = record.folder / name;
    std::error_code failed;
    if (!fs::is_regular_file(path, failed)) throw Error(path.string() + " is missing.", "Make " + record.folder.string() + " again; its manifest lists the file.");
    const auto size = fs::file_size(path, failed);
    if (size != stamp.bytes)
      throw Error(path.string() + " has " + std::to_string(size) + " bytes, its manifest says " + std::to_string(stamp.bytes) + ".",
                  "The file is damaged or stale; make " + record.folder.string() + " again.");
  }
}

// Text as JSON. Throws Error: it is none.
Json json_of(const std::string& text, const std::string& where) {
  try {
    return parsed(text, where);
  } catch (const Json::exception& cause) {
    throw Error(where + " is not valid JSON: " + cause.what() + ".", "It is damaged: copy it again, or make it anew.");
  }
}

void require_version(const Json& data, const std::string& where) {
  if (data.contains("version") && data.at("version") == kVersion) return;
  throw Error(where + " has version " + (data.contains("version") ? data.at("version").dump() : "None") + "; this moetrt reads version " + std::to_string(kVersion) + ".",
              "Make it anew with this moetrt.");
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot read " + path.string() + ".");
  return {std::istreambuf_iterator<char>(file), {}};
}

// A set's own manifest need not be there; what it says besides its version is read from the ranks.
void require_set_version(const fs::path& path) {
  if (!fs::is_regular_file(path)) return;
  const Json data = json_of(read_text(path), path.string());
  if (data.is_object()) require_version(data, path.string());
}

}  // namespace

std::vector<std::string> Assembly::sent() const {
  for (const Step& step : steps)
    if (const auto* send = std::get_if<Send>(&step)) return send->values;
  return {};
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  const Json data = json_of(text, where);
  const std::string kind = data.is_object() && data.contains("kind") ? shown(data.at("kind")) : data.is_object() ? "None" : "'" + std::string(data.type_name()) + "'";
  if (kind != "'" + std::string(kKind) + "'") throw Error(where + " is of kind " + kind + ", where '" + kKind + "' is expected.");
  const Object from(data, where);
  require_version(data, where);
  from.only({"backend",   "rank",     "plan",    "plan_hash", "config",   "shard", "source",  "precision", "attention",    "graphs", "max_context",
             "max_batch", "assembly", "options", "lowerings", "refusals", "files", "request", "tools",     "quantization", "kind",   "version"});
  Manifest made;
  made.backend = from.text("backend");
  made.rank = static_cast<int>(from.number("rank", 0, kMostRanks));
  const Object plan = from.object("plan"), config = from.object("config");
  plan.only({"tensor", "pipeline"});
  made.tensor = static_cast<int>(plan.number("tensor", 1, kMostRanks));
  made.pipeline = static_cast<int>(plan.number("pipeline", 1, kMostRanks));
  made.vocab = config.number("vocab", 1, INT32_MAX);
  if (config.has("bos")) made.bos = config.number("bos", 0, INT32_MAX);
  for (const Json& token : config.list("eos")) {
    if (!token.is_number_integer()) throw Error(config.where() + ".eos holds " + shown(token) + ", where int is expected.", kDamaged);
    made.eos.push_back(token.get<std::int64_t>());
  }
  made.max_context = from.number("max_context", 1, INT32_MAX);
  made.max_batch = from.number("max_batch", 1, INT32_MAX);
  made.assembly = read_assembly(from.object("assembly"));
  read_options(from.object("options"), made);
  const Object files = from.object("files");
  for (const auto& [name, stamp] : files.data().items()) {
    const Object told = files.object(name);
    made.files[file_name(name, files.where())] = {static_cast<std::uintmax_t>(told.number("bytes", 0, INT64_MAX)), told.text("sha256")};
  }
  read_identity(from, made);
  return made;
}

Manifest Manifest::read(const fs::path& path) {
  Manifest made = parse_manifest(read_text(path), path.string());
  made.folder = path.parent_path();
  return made;
}

std::vector<Manifest> Manifest::read_set(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw Error(folder.string() + " is not a folder.", "Give the folder that `moetrt build` wrote.");
  require_set_version(folder / kFile);
  std::map<int, Manifest> ranks;
  std::set<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().rfind("rank-", 0) == 0 && fs::is_regular_file(entry.path() / kFile)) paths.insert(entry.path() / kFile);
  for (const fs::path& path : paths) {
    Manifest record = read(path);
    const std::string lies = path.parent_path().filename().string();
    if (lies != rank_folder(record.rank))
      throw Error(path.string() + " is of rank " + std::to_string(record.rank) + ", but lies in " + lies + ".", "Folders of ranks must not be renamed.");
    ranks.emplace(record.rank, std::move(record));
  }
  if (ranks.empty()) throw Error(folder.string() + " holds no finished rank (no rank-*/" + kFile + ").", "Give the folder that `moetrt export` or `moetrt build` wrote.");
  const Manifest& first = ranks.begin()->second;
  for (const auto& [rank, record] : ranks) require_alike(record, first, folder);
  const int wanted = first.tensor * first.pipeline;
  for (int rank = 0; rank < wanted; ++rank)
    if (!ranks.count(rank))
      throw Error(folder.string() + " has " + std::to_string(ranks.size()) + " of the " + std::to_string(wanted) + " ranks of its plan; " + rank_folder(rank) +
                      " is missing or unfinished.",
                  "Make it with --rank " + std::to_string(rank) + ".");
  std::vector<Manifest> found;
  for (auto& [rank, record] : ranks) {
    if (rank >= wanted)
      throw Error("rank " + std::to_string(rank) + " is not in a plan of " + std::to_string(wanted) + " ranks.", "Remove " + (folder / rank_folder(rank)).string() + ".");
    check_files(record);
    found.push_back(std::move(record));
  }
  return found;
}

std::optional<Joined> Joined::find(const fs::path& folder, const std::vector<Manifest>& ranks) {
  const fs::path path = folder / "joined.json", graph = folder / "joined.onnx";
  std::ifstream file(path, std::ios::binary);
  if (!file || !fs::is_regular_file(graph)) return std::nullopt;
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    const Json data = parsed(text, path.string());
    const Object from(data, path.string());
    from.only({"graphs", "graph", "signature", "kind", "version"});
    if (from.text("kind") != "joined" || from.number("version", 0, INT32_MAX) != kVersion) return std::nullopt;
    if (from.object("graph").number("bytes", 0, INT64_MAX) != static_cast<std::int64_t>(fs::file_size(graph))) return std::nullopt;
    const Object graphs = from.object("graphs");
    if (graphs.data().size() != ranks.size()) return std::nullopt;
    for (const Manifest& rank : ranks) {
      const Object told = graphs.object(rank_folder(rank.rank));
      if (told.data().size() != rank.assembly.graphs.size()) return std::nullopt;
      for (const auto& [launch, name] : rank.assembly.graphs) {
        const auto stamp = rank.files.find(name);
        if (stamp == rank.files.end() || told.text(name) != stamp->second.sha256) return std::nullopt;
      }
    }
    return Joined{graph, read_signature(from.object("signature"))};
  } catch (const Json::exception&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace moetrt
