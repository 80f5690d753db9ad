// A shared library that is opened when it is first needed, so that nothing has to be there to link or to start.
#pragma once

#include <string>
#include <vector>

namespace moetrt {

class Library {
 public:
  // Opens the first of `names` that loads, for as long as the process lives. `what` and `hint`: for who has none of them.
  // Throws Error: none loads.
  Library(const std::string& what, const std::vector<std::string>& names, const std::string& hint);

  // Throws Error: the library has no such function.
  template <typename Function>
  void find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(address(name));
  }

  // A function or variable; null where the library has none of that name.
  template <typename Symbol>
  [[nodiscard]] Symbol symbol(const char* name) const noexcept {
    return reinterpret_cast<Symbol>(look_up(name));
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 private:
  [[nodiscard]] void* look_up(const char* name) const noexcept;
  [[nodiscard]] void* address(const char* name) const;

  std::string what_, name_;
  void* handle_ = nullptr;
};

}  // namespace moetrt
