// The library of ops that engines for ONNX Runtime were built with: what is taken, and what is refused before any of it runs.
#include "kernel_library.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "backends.hpp"
#include "moetrt/error.hpp"
#include "sha256.hpp"

using namespace moetrt;
namespace fs = std::filesystem;

namespace {

const fs::path kOps = OPS_LIBRARY;

Manifest rank_of(const char* backend, std::optional<PluginLibrary> library = std::nullopt) {
  Manifest made;
  made.folder = "/engines/rank-00";
  made.backend = backend;
  made.plugins = std::move(library);
  return made;
}

PluginLibrary recorded(const fs::path& file, const std::string& version = "1") { return {"libmoetrt-ops.so", version, sha256_file(file)}; }

// Why a set of these ranks is not opened with this library; empty where it is.
std::string refusal(const std::vector<Manifest>& ranks, const fs::path& given = {}) {
  try {
    find_opener(ranks, {1, given});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// The same of one rank, less what the record says.
std::string problem(const PluginLibrary& record, const fs::path& given = {}) {
  const std::string told = refusal({rank_of("ort", record)}, given),
                    end = "; /engines holds engines that were built with libmoetrt-ops.so, plugins of version " + record.version + ", sha256 " + record.sha256.substr(0, 12) + ".";
  REQUIRE(told.size() > end.size());
  CHECK(told.substr(told.size() - end.size()) == end);
  return told.substr(0, told.size() - end.size());
}

}  // namespace

TEST_CASE("engines that need no library are opened without, and one that is given for them is refused") {
  for (const char* backend : {"ort", "ort-cuda"}) {
    CHECK(refusal({rank_of(backend)}).empty());
    CHECK(refusal({rank_of(backend)}, "lib.so") == "/engines holds engines that need no library of kernels, but lib.so is given.");
  }
}

TEST_CASE("a library that is missing, or of another hash, is told beside the recorded one") {
  CHECK(problem(recorded(kOps)) == "/engines/libmoetrt-ops.so is missing");
  CHECK(problem(recorded(kOps), "/nowhere/lib.so") == "/nowhere/lib.so is missing");
  CHECK(problem(recorded(kOps), "/") == "/ is missing");
  PluginLibrary other = recorded(kOps);
  other.sha256 = std::string(64, 'a');
  CHECK(problem(other, kOps) == kOps.string() + " has the sha256 " + sha256_file(kOps).substr(0, 12));
}

TEST_CASE("what is no library of ops is refused, and ops of another version") {
  const fs::path text = fs::temp_directory_path() / ("moetrt-no-ops-" + std::to_string(getpid()));
  std::ofstream(text) << "text";
  CHECK(problem(recorded(text), text).rfind(text.string() + " is no library of moetrt's plugins that can be loaded here: ", 0) == 0);
  fs::remove(text);
  CHECK(problem(recorded(kOps, "none"), kOps).rfind(kOps.string() + " has plugins of version ", 0) == 0);
  const std::vector<Manifest> ranks{rank_of("ort", recorded(kOps))};
  CHECK_THROWS_WITH_AS(find_kernel_library(ranks, kOps, kPluginsVersion), doctest::Contains("undefined symbol: moetrt_plugins_version"), Error);
}

TEST_CASE("each rank's record is held against the one library of the set") {
  PluginLibrary odd = recorded(kOps);
  odd.sha256 = std::string(64, '0');
  CHECK(refusal({rank_of("ort"), rank_of("ort", odd)}, kOps).find("sha256 000000000000.") != std::string::npos);
}
