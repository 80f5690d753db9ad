#include "crew.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using namespace moetrt;

TEST_CASE("ranks work at once, each always on its own thread") {
  Crew crew(4, std::chrono::seconds(1), [] {});
  std::barrier met(4);
  std::vector<std::thread::id> first(4), again(4);
  for (auto* seen : {&first, &again})
    crew.call(0, 4, [&](int rank) {
      met.arrive_and_wait();  // for ever, were they called in turn
      (*seen)[static_cast<std::size_t>(rank)] = std::this_thread::get_id();
    });
  CHECK(first == again);
  CHECK(std::set<std::thread::id>(first.begin(), first.end()).size() == 4);
}

TEST_CASE("only those that are called work") {
  Crew crew(4, std::chrono::seconds(1), [] {});
  std::vector<int> calls(4, 0);
  for (int times = 0; times < 100; ++times) crew.call(2, 4, [&](int rank) { ++calls[static_cast<std::size_t>(rank)]; });
  CHECK(calls == std::vector<int>{0, 0, 100, 100});
}

TEST_CASE("one that fails releases those that wait for it, and it is what is told") {
  std::atomic<bool> released{false};
  std::atomic<int> releases{0};
  Crew crew(3, std::chrono::milliseconds(1), [&] {
    ++releases;
    released = true;
    released.notify_all();
  });
  for (int times = 1; times <= 50; ++times) {
    released = false;
    try {
      crew.call(0, 3, [&](int rank) {
        if (rank == 1) throw std::runtime_error("rank 1 has no memory");
        released.wait(false);
        throw std::runtime_error("a peer is gone");
      });
      FAIL("nothing was thrown");
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()) == "rank 1 has no memory");
    }
    CHECK(releases == times);
  }
  int lives = 0;
  crew.call(0, 1, [&](int) { ++lives; });
  CHECK(lives == 1);
}

TEST_CASE("where all fail alike, nobody is released") {
  int releases = 0;
  Crew crew(3, std::chrono::seconds(20), [&] { ++releases; });
  CHECK_THROWS_WITH(crew.call(0, 3, [](int) { throw std::runtime_error("too many tokens"); }), "too many tokens");
  CHECK(releases == 0);
}
