// A thread for each of several ranks, which do one thing at once and meet at its end.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moetrt {

class Crew {
 public:
  // `release`: called when one of a call's ranks has failed and others are still at work after `grace`: by then they wait for it inside their
  // graphs, and must be let go. Not sooner: what they wait in is not to be taken from them while they are about to go in.
  Crew(int ranks, std::chrono::milliseconds grace, std::function<void()> release);
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew();

  // Calls `work` with each rank from `begin` to `end`, each on that rank's thread, and waits for all.
  // Throws what failed first; what the others came to after it is a consequence.
  void call(int begin, int end, const std::function<void(int)>& work);

 private:
  void serve(int rank);
  void failed(std::exception_ptr failure);

  std::chrono::milliseconds grace_;
  std::function<void()> release_;
  std::mutex lock_;
  std::condition_variable told_, done_;
  const std::function<void(int)>* work_ = nullptr;
  std::vector<char> waiting_;  // ranks that have yet to begin
  int running_ = 0;
  bool over_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace moetrt
