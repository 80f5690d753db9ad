#include "kernel_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <string>

#include "moetrt/error.hpp"
#include "sha256.hpp"

namespace moetrt {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kShort = 12;  // digits of a hash that are shown

// What of a file is not as recorded; empty where all is.
std::string problem(const fs::path& file, const PluginLibrary& recorded, const char* version) {
  std::error_code failed;
  if (!fs::is_regular_file(file, failed)) return "is missing";
  const std::string hash = sha256_file(file);
  if (hash != recorded.sha256) return "has the sha256 " + hash.substr(0, kShort);
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* found = library ? dlsym(library, version) : nullptr;
  if (!found) return "is no library of moetrt's plugins that can be loaded here: " + std::string(dlerror());
  const std::string told = reinterpret_cast<const char* (*)()>(found)();
  return told == recorded.version ? "" : "has plugins of version " + told;
}

// What ranks record, each once, in their order.
std::vector<PluginLibrary> recorded_by(const std::vector<Manifest>& ranks) {
  std::vector<PluginLibrary> made;
  for (const Manifest& rank : ranks)
    if (rank.plugins && std::find(made.begin(), made.end(), *rank.plugins) == made.end()) made.push_back(*rank.plugins);
  return made;
}

}  // namespace

fs::path find_kernel_library(const std::vector<Manifest>& ranks, const fs::path& given, const char* version) {
  const fs::path folder = ranks.front().folder.parent_path();
  const std::vector<PluginLibrary> needed = recorded_by(ranks);
  if (needed.empty() && !given.empty())
    throw UsageError(folder.string() + " holds engines that need no library of kernels, but " + given.string() + " is given.", "Leave --plugins out.");
  if (needed.empty()) return {};
  const fs::path file = given.empty() ? folder / needed.front().name : given;
  // Absolute, so that the file that is checked is the one that is loaded: a bare name would be looked for elsewhere.
  std::error_code failed;
  const fs::path path = fs::canonical(file, failed);
  for (const PluginLibrary& recorded : needed)
    if (const std::string what = problem(path, recorded, version); !what.empty())
      throw Error(file.string() + " " + what + "; " + folder.string() + " holds engines that were built with " + recorded.name + ", plugins of version " + recorded.version +
                      ", sha256 " + recorded.sha256.substr(0, kShort) + ".",
                  "Give that library by --plugins FILE, or build the engines again with `moetrt build --plugins` and the library at hand.");
  return path;
}

}  // namespace moetrt
