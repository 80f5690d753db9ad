#include "backends.hpp"

#include <functional>
#include <map>
#include <string>

#include "moetrt/error.hpp"
#include "ort_session.hpp"

namespace moetrt {

std::unique_ptr<Opener> find_opener(const std::vector<Manifest>& ranks, int threads) {
  const Manifest& first = ranks.front();
  const std::map<std::string, std::function<std::unique_ptr<Opener>()>> known{
      {"ort", [&] { return ort_opener(threads); }}, {"ort-cuda", [&] { return ort_opener(threads); }}, {"tensorrt", [&] { return tensorrt_opener(ranks); }}};
  const auto found = known.find(first.backend);
  if (found == known.end()) {
    std::string names;
    for (const auto& [name, make] : known) names += (names.empty() ? "" : ", ") + name;
    throw Error(first.folder.string() + " holds engines of " + first.backend + ", which this runtime cannot run.", "It runs those of " + names + ".");
  }
  return found->second();
}

}  // namespace moetrt
