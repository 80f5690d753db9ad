// Folders of engines for the fake TensorRT, and what it was asked.
#pragma once

#include <dlfcn.h>
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "fake/fake.hpp"
#include "moetrt/chain.hpp"
#include "moetrt/error.hpp"
#include "record.hpp"

using namespace moetrt;
using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kVocab = 32, kContext = 64;
using Tokens = std::vector<std::int64_t>;

template <typename Function>
Function* fake(const char* name) {
  static void* library = dlopen("libcudart.so.13", RTLD_NOW);
  REQUIRE(library);
  auto* found = reinterpret_cast<Function*>(dlsym(library, name));
  REQUIRE(found);
  return found;
}

inline std::vector<std::string> calls() {
  std::istringstream text(fake<decltype(fake_calls)>("fake_calls")());
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

inline long count(const std::vector<std::string>& lines, const std::string& line) { return std::count(lines.begin(), lines.end(), line); }

// A folder of engines, as `moetrt build --backend tensorrt` writes it.
class Engines {
 public:
  explicit Engines(int tensor, int fails_at = 0, const json& plugins = nullptr) {
    static int number = 0;
    folder_ = fs::temp_directory_path() / ("moetrt-tensorrt-" + std::to_string(getpid()) + "-" + std::to_string(number++));
    for (int rank = 0; rank < tensor; ++rank) {
      const fs::path place = folder_ / ("rank-0" + std::to_string(rank));
      fs::create_directories(place);
      std::ostringstream plan;
      plan << kVocab << " " << kContext << " " << tensor << " " << rank << " " << (rank == tensor - 1 ? fails_at : 0) << "\n";
      std::ofstream(place / "rank.engine") << plan.str();
      json data = record();
      data["backend"] = "tensorrt";
      data["rank"] = rank;
      data["plan"] = {{"tensor", tensor}, {"pipeline", 1}};
      data["options"] = {{"profiles", json::array()}, {"compute_capabilities", "default"}, {"communicator", nullptr}, {"plugins", plugins}, {"experimental", nullptr}};
      data["assembly"]["graphs"]["rank"] = "rank.engine";
      json& signature = data["assembly"]["signatures"]["rank"];
      for (json& tensor_of : {std::ref(signature["inputs"]), std::ref(signature["outputs"])})
        for (json& one : tensor_of)
          if (one["name"].get<std::string>().rfind("a.cache", 0) == 0) one["shape"] = {"batch", kContext, 1};
      signature["inputs"].push_back({{"name", "start"}, {"dtype", "int64"}, {"shape", {"batch"}}});
      signature["inputs"].push_back({{"name", "select"}, {"dtype", "int64"}, {"shape", {"batch", "selected"}}});
      data["files"] = {{"rank.engine", {{"bytes", plan.str().size()}, {"sha256", "s"}}}};
      change(place / "manifest.json", data);
    }
    fake<decltype(fake_devices)>("fake_devices")(tensor);
    calls();
  }
  ~Engines() { fs::remove_all(folder_); }

  static void change(const fs::path& path, const json& data) { std::ofstream(path) << data.dump(); }
  [[nodiscard]] const fs::path& folder() const { return folder_; }

 private:
  fs::path folder_;
};

// Why engines are not opened.
inline std::string refusal(const fs::path& folder, const fs::path& plugins = {}) {
  try {
    Chain::load(folder, {0, plugins});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
