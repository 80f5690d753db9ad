#include "tensorrt_plugins.hpp"

#include <dlfcn.h>

#include <mutex>
#include <string>

#include "moetrt/error.hpp"
#include "sha256.hpp"

namespace moetrt {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kShort = 12;  // digits of a hash that are shown

// Why `file` does not serve: what of it is not as recorded, beside what is.
Error refused(const fs::path& file, const std::string& problem, const PluginLibrary& recorded, const fs::path& folder) {
  return Error(file.string() + " " + problem + "; " + folder.string() + " holds engines that were built with " + recorded.name + ", plugins of version " + recorded.version +
                   ", sha256 " + recorded.sha256.substr(0, kShort) + ".",
               "Give that library by --plugins FILE, or build the engines again with `moetrt build --plugins` and the library at hand.");
}

// The version that a library of plugins tells. Throws Error: it is none. It stays open for as long as the process lives.
std::string version_of(const fs::path& file, const PluginLibrary& recorded, const fs::path& folder) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* found = library ? dlsym(library, "moetrt_plugins_version") : nullptr;
  if (!found) throw refused(file, "is no library of moetrt's plugins that can be loaded here: " + std::string(dlerror()), recorded, folder);
  return reinterpret_cast<const char* (*)()>(found)();
}

// Absolute, so that the file that is checked is the one that is loaded: a bare name would be looked for elsewhere.
fs::path checked(const fs::path& file, const PluginLibrary& recorded, const fs::path& folder) {
  std::error_code failed;
  const fs::path path = fs::canonical(file, failed);
  if (failed || !fs::is_regular_file(path, failed)) throw refused(file, "is missing", recorded, folder);
  const std::string hash = sha256_file(path);
  if (hash != recorded.sha256) throw refused(file, "has the sha256 " + hash.substr(0, kShort), recorded, folder);
  const std::string version = version_of(path, recorded, folder);
  if (version != recorded.version) throw refused(file, "has plugins of version " + version, recorded, folder);
  return path;
}

}  // namespace

std::vector<fs::path> find_plugins(const std::vector<Manifest>& ranks, const fs::path& given) {
  std::vector<fs::path> found;
  const Manifest* last = nullptr;  // ranks of a set have one library, which is checked once
  for (const Manifest& rank : ranks) {
    const fs::path folder = rank.folder.parent_path();
    if (!rank.plugins)
      found.emplace_back();
    else if (last && last->plugins == rank.plugins)
      found.push_back(found.back());
    else
      found.push_back(checked(given.empty() ? folder / rank.plugins->name : given, *rank.plugins, folder));
    last = &rank;
  }
  return found;
}

bool load_plugins(nvinfer1::IRuntime& runtime, const fs::path& library) {
  static std::mutex one_at_a_time;  // ranks come at once, which neither TensorRT nor a library of plugins need expect
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  return runtime.getPluginRegistry().loadLibrary(library.c_str()) != nullptr;
}

}  // namespace moetrt
