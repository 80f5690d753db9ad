// Damaged records, drawn at random from a fixed seed: refused or read, never a crash (run under sanitizers in CI).
#include <doctest/doctest.h>

#include <random>
#include <string>

#include "moetrt/error.hpp"
#include "moetrt/manifest.hpp"
#include "record.hpp"

using namespace moetrt;

namespace {

constexpr int kRounds = 20000;

// One to four bytes overwritten, dropped, doubled or cut off.
std::string damaged(std::string text, std::mt19937& chance) {
  const auto below = [&](std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit ? limit - 1 : 0)(chance); };
  for (std::size_t times = 1 + below(4); times-- && !text.empty();) {
    const std::size_t at = below(text.size());
    switch (below(5)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        text.insert(at, text.substr(at, 1 + below(8)));
        break;
      case 3:
        text.resize(at);
        break;
      default:
        text[at] = "0123456789-e.\"{}[],:"[below(20)];
    }
  }
  return text;
}

}  // namespace

TEST_CASE("damaged records are refused or read, and nothing else") {
  std::mt19937 chance(7);
  const std::string whole = record().dump();
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    try {
      parse_manifest(damaged(whole, chance), "manifest.json");
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > kRounds / 2);
}
