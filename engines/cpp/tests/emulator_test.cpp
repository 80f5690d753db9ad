// The emulator sees what a GPU would do wrong: what kernels owe to barriers, waits and whole warps.
#include "emulator.hpp"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "device.cuh"
#include "doctest/doctest.h"

using namespace moetrt::kernels;

namespace {

// Each thread leaves its number and reads its neighbour's. :returns: what they read, threads going on in the given order.
std::vector<int> neighbours(unsigned order, bool with_barrier) {
  std::vector<int> seen(64);
  emulator::order = order;
  emulator::run({1, 1, 1}, 64, 64 * sizeof(int), [&] {
    auto* numbers = reinterpret_cast<int*>(shared_memory());
    numbers[thread()] = thread();
    if (with_barrier) sync();
    seen[static_cast<std::size_t>(thread())] = numbers[(thread() + 1) % 64];
  });
  return seen;
}

alignas(16) const char kSixteen[17] = "0123456789abcdef";

}  // namespace

TEST_CASE("a missing barrier gives other numbers in another order, one that is there the same") {
  CHECK(neighbours(0, true) == neighbours(1, true));
  CHECK(neighbours(0, true) == neighbours(9, true));
  CHECK(neighbours(0, false) != neighbours(1, false));
}

TEST_CASE("a copy is not there before it was waited for") {
  bool early = false, late = false;
  emulator::run({1, 1, 1}, 32, 16 * 32, [&] {
    std::byte* mine = shared_memory() + 16 * thread();
    copy_async(mine, kSixteen, true);
    commit_copies();
    await_copies<1>();
    early = early || std::memcmp(mine, kSixteen, 16) == 0;
    await_copies<0>();
    late = std::memcmp(mine, kSixteen, 16) == 0;
  });
  CHECK_FALSE(early);
  CHECK(late);
}

TEST_CASE("a copy that is not there gives zeros, one that is not aligned is refused") {
  int sum = 1;
  emulator::run({1, 1, 1}, 32, 16, [&] {
    copy_async(shared_memory(), kSixteen, false);
    commit_copies();
    await_copies<0>();
    sync();
    sum = std::to_integer<int>(shared_memory()[0]) + std::to_integer<int>(shared_memory()[15]);
  });
  CHECK(sum == 0);
  CHECK_THROWS_AS(emulator::run({1, 1, 1}, 32, 32, [] { copy_async(shared_memory() + 4, kSixteen, true); }), std::logic_error);
}

TEST_CASE("lanes that meet in different instructions, or in vain, are refused") {
  CHECK_THROWS_AS(emulator::run({1, 1, 1}, 32, 0, [] { lane() == 3 ? static_cast<void>(ballot(true)) : sync_warp(); }), std::logic_error);
  CHECK_THROWS_AS(emulator::run({1, 1, 1}, 32, 0,
                                [] {
                                  if (lane() != 3) sync_warp();
                                }),
                  std::logic_error);
}

TEST_CASE("shuffles and votes see all lanes, and what a kernel throws comes out") {
  std::vector<int> found(32);
  unsigned votes = 0;
  emulator::run({1, 1, 1}, 32, 0, [&] {
    found[static_cast<std::size_t>(lane())] = from_lane(lane() * 10, lane() ^ 1);
    votes = ballot(lane() % 2 == 1);
  });
  CHECK(found[4] == 50);
  CHECK(found[5] == 40);
  CHECK(votes == 0xaaaaaaaau);
  CHECK_THROWS_AS(emulator::run({1, 1, 1}, 32, 0, [] { throw std::out_of_range("of an array"); }), std::out_of_range);
}

TEST_CASE("every block runs once, whatever the order") {
  for (const unsigned order : {0u, 1u, 5u}) {
    emulator::order = order;
    std::vector<int> runs(12);
    emulator::run({4, 3, 1}, 32, 0, [&] {
      if (thread() == 0) ++runs[static_cast<std::size_t>(block_row() * 4 + block())];
    });
    CHECK(runs == std::vector<int>(12, 1));
  }
  emulator::order = 0;
}
