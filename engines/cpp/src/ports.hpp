// What a graph's signature says of a run: which values are bound anew, which stay, and of what shape the results are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "moetrt/session.hpp"

namespace moetrt {

using Sizes = std::map<std::string, std::int64_t>;  // symbolic dimension → its size

struct Ports {
  // `where`: what errors name. `signature` has to live as long.
  Ports(const Signature& signature, std::string where);

  // The shapes of a run's inputs, one after another. Throws Error: one is not there, or of another dtype or rank.
  [[nodiscard]] std::vector<std::int64_t> key(const Values& values) const;
  [[nodiscard]] Sizes sizes(const Values& values) const;
  // Throws Error: a dimension is one that no input has.
  [[nodiscard]] std::vector<std::int64_t> shape(const Tensor& tensor, const Sizes& sizes) const;
  // Throws Error: the cache lacks it.
  [[nodiscard]] const Array& state(const std::string& input, const Values& states) const;
  // Whether it is a step of one token, which devices capture and replay.
  [[nodiscard]] static bool is_one_token(const Sizes& sizes);

  std::vector<const Tensor*> inputs, results;  // but states
  std::map<std::string, std::string> states;   // input → output
  std::string where;
};

}  // namespace moetrt
