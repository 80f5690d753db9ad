// Every refusal that a user can meet: what, where, which value, and what would work.
#pragma once

#include <stdexcept>
#include <string>

namespace moetrt {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::string hint = {}) : std::runtime_error(message), hint_(std::move(hint)) {}

  // What would work instead; empty where nobody knows.
  [[nodiscard]] const std::string& hint() const noexcept { return hint_; }

 private:
  std::string hint_;
};

}  // namespace moetrt
