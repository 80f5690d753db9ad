// A folder's ranks and the record of their joined graph: a set or an Error, and a joined graph or none.
#include "folder.hpp"
#include "moetrt/error.hpp"
#include "moetrt/manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::filesystem::path folder = lay_out({reinterpret_cast<const char*>(data), size});
  std::vector<moetrt::Manifest> ranks;
  try {
    ranks = moetrt::Manifest::read_set(folder);
    moetrt::Joined::find(folder, ranks);
  } catch (const moetrt::Error&) {
  }
  return ranks.empty() ? -1 : 0;  // what is no set is not kept to begin from: most of its children would be none either
}
