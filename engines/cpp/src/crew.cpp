#include "crew.hpp"

#include <utility>

namespace moetrt {

Crew::Crew(int ranks, std::chrono::milliseconds grace, std::function<void()> release) : grace_(grace), release_(std::move(release)), waiting_(static_cast<std::size_t>(ranks), 0) {
  threads_.reserve(waiting_.size());
  for (int rank = 0; rank < ranks; ++rank) threads_.emplace_back([this, rank] { serve(rank); });
}

Crew::~Crew() {
  {
    const std::lock_guard<std::mutex> lock(lock_);
    over_ = true;
  }
  told_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Crew::call(int begin, int end, const std::function<void(int)>& work) {
  std::unique_lock<std::mutex> lock(lock_);
  work_ = &work;
  failure_ = nullptr;
  running_ = end - begin;
  for (int rank = begin; rank < end; ++rank) waiting_[static_cast<std::size_t>(rank)] = 1;
  told_.notify_all();
  done_.wait(lock, [&] { return running_ == 0; });
  work_ = nullptr;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Crew::serve(int rank) {
  char& waiting = waiting_[static_cast<std::size_t>(rank)];
  std::unique_lock<std::mutex> lock(lock_);
  for (;;) {
    told_.wait(lock, [&] { return over_ || waiting; });
    if (!waiting) return;
    waiting = 0;
    const auto& work = *work_;
    lock.unlock();
    try {
      work(rank);
    } catch (...) {
      failed(std::current_exception());
    }
    lock.lock();
    --running_;
    done_.notify_all();
  }
}

void Crew::failed(std::exception_ptr failure) {
  std::unique_lock<std::mutex> lock(lock_);
  if (failure_) return;
  failure_ = std::move(failure);
  if (done_.wait_for(lock, grace_, [&] { return running_ == 1; })) return;  // this rank is the last
  lock.unlock();
  release_();
}

}  // namespace moetrt
