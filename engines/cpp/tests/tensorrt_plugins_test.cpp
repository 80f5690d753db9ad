// Libraries of plugins: that TensorRT is given the one that engines were built with before it sees an engine, and no other one.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "moetrt.h"
#include "sha256.hpp"
#include "tensorrt_engines.hpp"

namespace {

const fs::path kPlugins = FAKE_PLUGINS;
const std::string kBuiltWith = " holds engines that were built with libmoetrt-plugins.so, plugins of version ";

json recorded(const fs::path& library = kPlugins, const std::string& version = "1") {
  return {{"library", "libmoetrt-plugins.so"}, {"version", version}, {"sha256", sha256_file(library)}};
}

// What is told of `library` when it is not the one of the engines; nothing was deserialised before that.
std::string refused(const Engines& engines, const fs::path& library, const json& record) {
  const std::string told = refusal(engines.folder(), library), end = "; " + engines.folder().string() + kBuiltWith + record["version"].get<std::string>() + ", sha256 " +
                                                                     record["sha256"].get<std::string>().substr(0, 12) + ".";
  for (const std::string& call : calls()) CHECK(call.rfind("deserialize", 0) == std::string::npos);
  REQUIRE(told.size() > end.size());
  CHECK(told.substr(told.size() - end.size()) == end);
  return told.substr(0, told.size() - end.size());
}

// What comes to TensorRT of a library and of engines, in its order.
std::vector<std::string> order() {
  std::vector<std::string> told = calls();
  told.erase(std::remove_if(told.begin(), told.end(), [](const std::string& call) { return call.rfind("loadLibrary", 0) && call.rfind("deserialize", 0); }), told.end());
  return told;
}

}  // namespace

TEST_CASE("engines without plugins are opened without, and a library that is given for them is refused") {
  const Engines engines(1);
  CHECK(refusal(engines.folder()).empty());
  CHECK(order() == std::vector<std::string>{"deserialize"});
  CHECK(refusal(engines.folder(), kPlugins) == engines.folder().string() + " holds engines that need no library of kernels, but " + kPlugins.string() + " is given.");
  CHECK(order().empty());
}

TEST_CASE("of ranks some of which were built with plugins, those alone are given the library") {
  const Engines engines(2, 0, recorded());
  const fs::path manifest = engines.folder() / "rank-00/manifest.json";
  json data = json::parse(std::ifstream(manifest));
  data["options"]["plugins"] = nullptr;
  Engines::change(manifest, data);
  CHECK(refusal(engines.folder(), kPlugins).empty());
  const auto told = order();
  CHECK(told.size() == 3);
  CHECK(count(told, "loadLibrary " + fs::canonical(kPlugins).string()) == 1);
}

TEST_CASE("the library of the engines is loaded before they are deserialised") {
  const Engines engines(1, 0, recorded());
  const std::string path = fs::canonical(kPlugins).string();
  const std::vector<std::string> wanted{"loadLibrary " + path, "deserialize " + path};
  CHECK(refusal(engines.folder(), kPlugins).empty());
  CHECK(order() == wanted);
  CHECK(refusal(engines.folder(), kPlugins).empty());  // and again, for another runtime
  CHECK(order() == wanted);
}

TEST_CASE("it is looked for beside the engines, by its recorded name") {
  const Engines engines(1, 0, recorded());
  CHECK(refused(engines, {}, recorded()) == (engines.folder() / "libmoetrt-plugins.so").string() + " is missing");
  fs::copy(kPlugins, engines.folder());
  CHECK(refusal(engines.folder()).empty());
  const std::string path = fs::canonical(engines.folder() / "libmoetrt-plugins.so").string();
  CHECK(order() == std::vector<std::string>{"loadLibrary " + path, "deserialize " + path});
}

TEST_CASE("a path that is not absolute is that of the file which is checked") {
  const Engines engines(1, 0, recorded());
  const fs::path before = fs::current_path();
  fs::current_path(kPlugins.parent_path());
  CHECK(refusal(engines.folder(), kPlugins.filename()).empty());
  fs::current_path(before);
  CHECK(order().front() == "loadLibrary " + fs::canonical(kPlugins).string());
}

TEST_CASE("each rank's runtime is given the library") {
  const Engines engines(3, 0, recorded());
  CHECK(refusal(engines.folder(), kPlugins).empty());
  const auto told = order();
  const std::string path = fs::canonical(kPlugins).string();
  CHECK(told.size() == 6);
  CHECK(count(told, "loadLibrary " + path) == 3);
  CHECK(count(told, "deserialize " + path) == 3);
}

TEST_CASE("a file that is not the recorded one is refused, and none of it is run") {
  const Engines engines(1, 0, recorded());
  const fs::path other = engines.folder() / "other.so";
  std::ofstream(other) << "not to be opened";
  CHECK(refused(engines, other, recorded()) == other.string() + " has the sha256 " + sha256_file(other).substr(0, 12));
  CHECK(refused(engines, "/nowhere/lib.so", recorded()) == "/nowhere/lib.so is missing");
  CHECK(refused(engines, engines.folder(), recorded()) == engines.folder().string() + " is missing");
}

TEST_CASE("plugins of another version are refused") {
  const json record = recorded(kPlugins, "2");
  const Engines engines(1, 0, record);
  CHECK(refused(engines, kPlugins, record) == kPlugins.string() + " has plugins of version 1");
}

TEST_CASE("what is no library of plugins is refused") {
  const fs::path text = fs::temp_directory_path() / ("moetrt-no-library-" + std::to_string(getpid()));
  std::ofstream(text) << "text";
  for (const fs::path& file : {text, fs::path(OTHER_LIBRARY)}) {
    const Engines engines(1, 0, recorded(file));
    CHECK(refused(engines, file, recorded(file)).rfind(file.string() + " is no library of moetrt's plugins that can be loaded here: ", 0) == 0);
  }
  fs::remove(text);
}

TEST_CASE("of ranks that record different libraries, the one that was not built with it is refused") {
  const Engines engines(2, 0, recorded());
  const fs::path manifest = engines.folder() / "rank-01/manifest.json";
  json data = json::parse(std::ifstream(manifest)), odd = recorded();
  odd["sha256"] = std::string(64, '0');
  data["options"]["plugins"] = odd;
  Engines::change(manifest, data);
  CHECK(refused(engines, kPlugins, odd) == kPlugins.string() + " has the sha256 " + sha256_file(kPlugins).substr(0, 12));
}

TEST_CASE("a library that TensorRT does not take is told by its path") {
  const Engines engines(1, 0, recorded());
  const fs::path library = engines.folder() / "refused.so";
  fs::copy(kPlugins, library);
  CHECK(refusal(engines.folder(), library).find("rank.engine: TensorRT refuses the plugins of " + fs::canonical(library).string() + ": it gives no reason.") != std::string::npos);
  CHECK(count(calls(), "deserialize") == 0);
}

TEST_CASE("the C interface takes the library, or looks beside the engines") {
  const Engines engines(1, 0, recorded());
  moetrt_chain* chain = nullptr;
  CHECK(moetrt_load_with_plugins(engines.folder().c_str(), 0, kPlugins.c_str(), &chain) == 0);
  moetrt_close(chain);
  CHECK(moetrt_load_with_plugins(engines.folder().c_str(), 0, nullptr, &chain) == 1);
  CHECK(moetrt_load(engines.folder().c_str(), 0, &chain) == 1);
  CHECK(std::string(moetrt_error()).rfind((engines.folder() / "libmoetrt-plugins.so").string() + " is missing; ", 0) == 0);
}

TEST_CASE("the hint says what to do") {
  const Engines engines(1, 0, recorded());
  try {
    Chain::load(engines.folder());
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.hint() == "Give that library by --plugins FILE, or build the engines again with `moetrt build --plugins` and the library at hand.");
  }
}
