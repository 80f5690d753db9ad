#include "nccl.hpp"

#include <string>
#include <utility>

#include "library.hpp"
#include "moetrt/error.hpp"

namespace moetrt {
namespace {

struct Nccl {
  int (*init_all)(void**, int, const int*);
  int (*abort)(void*);
  int (*destroy)(void*);
  const char* (*describe)(int);

  static const Nccl& get() {
    static const Nccl found = [] {
      const Library library("NCCL", {"libnccl.so.2", "libnccl.so"}, "Put its folder on LD_LIBRARY_PATH; the Python wheel nvidia-nccl-cu13 has it.");
      Nccl made{};
      library.find("ncclCommInitAll", made.init_all);
      library.find("ncclCommAbort", made.abort);
      library.find("ncclCommDestroy", made.destroy);
      library.find("ncclGetErrorString", made.describe);
      return made;
    }();
    return found;
  }
};

}  // namespace

Ring::Ring(std::vector<int> devices) : devices_(std::move(devices)) {}

Ring::~Ring() {
  for (void* communicator : communicators_) Nccl::get().destroy(communicator);
}

void Ring::prepare() {
  const std::lock_guard<std::mutex> lock(lock_);
  if (!communicators_.empty()) return;
  std::vector<void*> made(devices_.size(), nullptr);
  const int code = Nccl::get().init_all(made.data(), static_cast<int>(made.size()), devices_.data());
  if (code != 0) throw Error("NCCL cannot connect " + std::to_string(made.size()) + " devices: " + Nccl::get().describe(code) + ".", "NCCL_DEBUG=INFO makes it say more.");
  communicators_ = std::move(made);
  ++generation_;
}

void Ring::abort() noexcept {
  std::vector<void*> gone;
  {
    const std::lock_guard<std::mutex> lock(lock_);
    gone.swap(communicators_);
  }
  for (void* communicator : gone) Nccl::get().abort(communicator);
}

Ring::Member Ring::member(std::size_t place) const {
  const std::lock_guard<std::mutex> lock(lock_);
  if (communicators_.empty()) throw Error("this rank was released, because another rank failed.");
  return {communicators_.at(place), generation_};
}

}  // namespace moetrt
