#include "backends.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "kernel_library.hpp"
#include "moetrt/error.hpp"
#include "ort_session.hpp"

namespace moetrt {

std::unique_ptr<Opener> find_opener(const std::vector<Manifest>& ranks, const LoadOptions& options) {
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const Manifest& first = ranks.front();
  const auto ort = [&] { return ort_opener(threads, find_kernel_library(ranks, options.plugins, kOpsVersion)); };
  const std::map<std::string, std::function<std::unique_ptr<Opener>()>> known{
      {"ort", ort}, {"ort-cuda", ort}, {"tensorrt", [&] { return tensorrt_opener(ranks, options.plugins); }}};
  const auto found = known.find(first.backend);
  if (found == known.end()) {
    std::string names;
    for (const auto& [name, make] : known) names += (names.empty() ? "" : ", ") + name;
    throw Error(first.folder.string() + " holds engines of " + first.backend + ", which this runtime cannot run.", "It runs those of " + names + ".");
  }
  return found->second();
}

}  // namespace moetrt
