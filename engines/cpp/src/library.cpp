#include "library.hpp"

#include <dlfcn.h>

#include "moetrt/error.hpp"

namespace moetrt {

Library::Library(const std::string& what, const std::vector<std::string>& names, const std::string& hint) : what_(what) {
  std::string reason;
  for (const std::string& name : names) {
    handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_) {
      name_ = name;
      return;
    }
    reason += (reason.empty() ? "" : "; ") + std::string(dlerror());
  }
  throw Error(what + " cannot be loaded: " + reason + ".", hint);
}

void* Library::look_up(const char* name) const noexcept { return dlsym(handle_, name); }

void* Library::address(const char* name) const {
  void* found = look_up(name);
  if (!found)
    throw Error(what_ + " (" + name_ + ") has no function " + name + ".", "It is of another version; put one of the version that the engines were built with on LD_LIBRARY_PATH.");
  return found;
}

}  // namespace moetrt
