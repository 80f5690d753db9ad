// The text of a rank's manifest: read, or refused by an Error.
#include "moetrt/manifest.hpp"

#include "moetrt/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    moetrt::parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
  } catch (const moetrt::Error&) {
  }
  return 0;
}
