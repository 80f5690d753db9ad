#include "moetrt/manifest.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "moetrt/error.hpp"
#include "record.hpp"

using namespace moetrt;
using nlohmann::json;

namespace {

std::string refusal(const std::function<void(json&)>& change) {
  json data = record();
  change(data);
  try {
    parse_manifest(data.dump(), "manifest.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a record is read") {
  const Manifest made = parse_manifest(record().dump(), "manifest.json");
  CHECK(made.backend == "ort");
  CHECK(made.eos == std::vector<std::int64_t>{1});
  CHECK(std::get<Launch>(made.assembly.steps.at(0)).graph == "rank");
  CHECK(std::get<std::string>(made.assembly.signatures.at("rank").inputs.at(0).shape.at(1)) == "tokens");
  CHECK(made.config.at(0) == std::pair<std::string, std::string>{"session.x", "1"});
}

TEST_CASE("a provider is a name, or a name and what it is opened with") {
  json data = record();
  data["options"]["providers"] = {{"CUDAExecutionProvider", {{"use_tf32", "0"}, {"device_id", 1}}}, "CPUExecutionProvider"};
  const Manifest made = parse_manifest(data.dump(), "manifest.json");
  REQUIRE(made.providers.size() == 2);
  CHECK(made.providers[0].name == "CUDAExecutionProvider");
  CHECK(made.providers[0].options == std::map<std::string, std::string>{{"device_id", "1"}, {"use_tf32", "0"}});
  CHECK(made.providers[1].name == "CPUExecutionProvider");
  CHECK(refusal([](json& changed) { changed["options"]["providers"] = json::array({json::array({"CUDAExecutionProvider", 3})}); }).find(".providers is '3'") != std::string::npos);
}

TEST_CASE("a record names the library of plugins that its engines need, or none") {
  CHECK_FALSE(parse_manifest(record().dump(), "manifest.json").plugins);
  json data = record();
  data["options"]["plugins"] = nullptr;
  CHECK_FALSE(parse_manifest(data.dump(), "manifest.json").plugins);
  data["options"]["plugins"] = plugins_record();
  CHECK(parse_manifest(data.dump(), "manifest.json").plugins == PluginLibrary{"libmoetrt-plugins.so", "1", std::string(64, 'a')});
  const auto changed = [](const char* field, const json& value) {
    return refusal([&](json& whole) {
      whole["options"]["plugins"] = plugins_record();
      whole["options"]["plugins"][field] = value;
    });
  };
  CHECK(changed("library", "../lib.so") == "manifest.json.options.plugins names the file '../lib.so', which does not lie beside it.");
  CHECK(changed("version", 1) == "manifest.json.options.plugins.version is '1', where str is expected.");
  CHECK(changed("path", "/lib.so") == "manifest.json.options.plugins has the unknown field 'path'.");
  CHECK(refusal([](json& whole) { whole["options"]["plugins"] = "lib.so"; }) == "manifest.json.options.plugins is 'lib.so', where an object is expected.");
  CHECK(refusal([](json& whole) { whole["options"]["plugins"] = {{"library", "lib.so"}}; }) == "manifest.json.options.plugins lacks the field 'version'.");
}

TEST_CASE("what a record should not say is refused by name") {
  CHECK(refusal([](json& data) { data["kind"] = "graphs-rank"; }) == "manifest.json is of kind 'graphs-rank', where 'engine-rank' is expected.");
  CHECK(refusal([](json& data) { data["version"] = 9; }) == "manifest.json has version 9; this moetrt reads version 1.");
  CHECK(refusal([](json& data) { data["surprise"] = 1; }) == "manifest.json has the unknown field 'surprise'.");
  CHECK(refusal([](json& data) { data.erase("rank"); }) == "manifest.json lacks the field 'rank'.");
  CHECK(refusal([](json& data) { data["max_context"] = "many"; }) == "manifest.json.max_context is 'many', where int is expected.");
  CHECK(refusal([](json& data) { data["assembly"]["steps"][0]["kind"] = "jump"; }).find("'jump'") != std::string::npos);
  CHECK(refusal([](json& data) { data["assembly"]["steps"][0]["graph"] = "other"; }).find("launches 'other'") != std::string::npos);
  CHECK(refusal([](json& data) { data["assembly"]["graphs"]["rank"] = "../rank.onnx"; }).find("does not lie beside it") != std::string::npos);
  CHECK(refusal([](json& data) { data["assembly"]["signatures"]["rank"]["states"][0]["input"] = "b"; }).find("the state 'b'") != std::string::npos);
  CHECK(refusal([](json& data) { data["plan"]["tensor"] = 0; }).find("manifest.json.plan.tensor") != std::string::npos);
  CHECK(refusal([](json& data) { data["plan"]["tensor"] = 1e30; }).find("manifest.json.plan.tensor") != std::string::npos);
}

TEST_CASE("whatever field is lost or of another kind, it is refused or read, and nothing else") {
  json sound = record();
  sound["options"]["plugins"] = plugins_record();
  const json whole = sound.flatten();
  for (const auto& [pointer, value] : whole.items())
    for (const json& other : {json(nullptr), json(-1), json("x"), json::array(), json::object(), json(1e300)}) {
      json data = sound;
      data[json::json_pointer(pointer)] = other;
      try {
        parse_manifest(data.dump(), "manifest.json");
      } catch (const Error&) {
      }
    }
}

TEST_CASE("text that is no JSON is refused") {
  for (const char* text : {"", "{", "[]", "null", "\xff\xfe", "{\"kind\": \"engine-rank\"}"}) CHECK_THROWS_AS(parse_manifest(text, "manifest.json"), Error);
}
