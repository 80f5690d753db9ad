#include "folder.hpp"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

constexpr std::size_t kMostRanks = 8;

const fs::path& root() {
  static const fs::path made = fs::temp_directory_path() / ("moetrt-fuzz-" + std::to_string(getpid()));
  static const bool swept = [] { return std::atexit([] { fs::remove_all(root()); }) == 0; }();
  static_cast<void>(swept);
  return made;
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A hole of `stamp`'s size, where it states one.
void write_hole(const fs::path& path, const Json& stamp) {
  const bool sized = stamp.is_object() && stamp.contains("bytes") && stamp["bytes"].is_number_unsigned();
  write(path, "");
  std::error_code too_large;
  if (sized) fs::resize_file(path, stamp["bytes"].get<std::uint64_t>(), too_large);
}

std::vector<std::string> split(const std::string& texts) {
  std::vector<std::string> parts;
  for (std::size_t at = 0, end = 0; end != std::string::npos && parts.size() < kMostRanks + 1; at = end + 1) {
    end = texts.find('\0', at);
    parts.push_back(texts.substr(at, end - at));
  }
  return parts;
}

void lay_out_rank(const fs::path& folder, const std::string& text) {
  fs::create_directories(folder);
  const Json record = Json::parse(text, nullptr, false);
  if (record.is_object() && record.contains("files") && record["files"].is_object())
    for (const auto& [name, stamp] : record["files"].items())
      if (name.find('/') == std::string::npos) write_hole(folder / name.substr(0, name.find('\0')), stamp);
  write(folder / "manifest.json", text);
}

}  // namespace

fs::path lay_out(const std::string& texts) {
  fs::remove_all(root());
  fs::create_directories(root());
  std::vector<std::string> parts = split(texts);
  if (parts.size() > 1) {
    const Json joined = Json::parse(parts.back(), nullptr, false);
    if (joined.is_object() && joined.contains("graph")) write_hole(root() / "joined.onnx", joined["graph"]);
    write(root() / "joined.json", parts.back());
    parts.pop_back();
  }
  for (std::size_t rank = 0; rank < parts.size(); ++rank) lay_out_rank(root() / ("rank-0" + std::to_string(rank)), parts[rank]);
  return root();
}

fs::path lay_out_tokenizer(const std::string& text) {
  fs::create_directories(root());
  write(root() / "tokenizer.json", text);
  return root();
}
