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

// What was asked for is at fault, not what it was asked of: programs end with 2 instead of 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

}  // namespace moetrt
