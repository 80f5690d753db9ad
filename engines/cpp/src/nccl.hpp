// The communicators of ranks that meet inside their graphs, from NCCL, whose few functions are declared here.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace moetrt {

// One stage's communicators, a rank each. Made for all at once; aborted, they are made anew before the ranks are set to work again.
class Ring {
 public:
  // `devices`: of the ranks, in their order; each a device of its own.
  explicit Ring(std::vector<int> devices);
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  // Makes communicators where there are none. To be called while no rank is at work. Throws Error: NCCL cannot be loaded or refuses.
  void prepare();

  // Releases ranks that wait for others. Any thread may call it.
  void abort() noexcept;

  // The communicator of the rank in this place, and how many times there were new ones. Throws Error: they were aborted.
  struct Member {
    void* communicator;
    std::uint64_t generation;
  };
  [[nodiscard]] Member member(std::size_t place) const;

 private:
  std::vector<int> devices_;
  mutable std::mutex lock_;
  std::vector<void*> communicators_;  // none once aborted
  std::uint64_t generation_ = 0;
};

}  // namespace moetrt
