#include "emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moetrt/array.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace moetrt::kernels::emulator {

unsigned order = 0;

namespace {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 262144;
constexpr const char* kBarrier = "barrier";

struct Copy {
  std::byte* to;
  const void* from;
  bool there;
};

struct Fibre {
  ucontext_t context{};
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStack);
  Here here{};
  const char* waits = nullptr;  // where it waits for others; null while it can go on
  bool done = false;
  int meetings = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> committed;
};

struct Warp {
  Lane brought[2][kLanes];
  int arrived = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Warp> warps;
  ucontext_t scheduler{};
  void* scheduler_stack = nullptr;
  Fibre* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr failure;
  std::mt19937 shuffle;
};

thread_local Block block;  // NOLINT(bugprone-throwing-static-initialization): a generator with its usual seed

// AddressSanitizer is told that the stack changes, or it takes a fibre's for an overflow of the thread's.
struct Switch {
  void* fake = nullptr;
  Switch([[maybe_unused]] const void* bottom, [[maybe_unused]] std::size_t size, [[maybe_unused]] bool last = false) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, bottom, size);
#endif
  }
  void back() const {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }
};

struct SchedulerStack {
  const void* bottom = nullptr;
  std::size_t size = 0;
};
thread_local SchedulerStack scheduler_stack;

void release_barrier() {
  int waiting = 0, alive = 0;
  for (const auto& fibre : block.fibres) {
    alive += !fibre->done;
    waiting += !fibre->done && fibre->waits == kBarrier;
  }
  if (waiting != alive) return;
  for (const auto& fibre : block.fibres) fibre->waits = nullptr;
}

void to_scheduler(Fibre& fibre, bool last) {
  const Switch change(scheduler_stack.bottom, scheduler_stack.size, last);
  if (last)
    setcontext(&block.scheduler);
  else
    swapcontext(&fibre.context, &block.scheduler);
  change.back();
}

void begin() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack.bottom, &scheduler_stack.size);
#endif
  Fibre& fibre = *block.running;
  try {
    (*block.kernel)();
  } catch (...) {
    block.failure = std::current_exception();
  }
  fibre.done = true;
  release_barrier();
  to_scheduler(fibre, true);
}

void await(const char* place) {
  Fibre& fibre = *block.running;
  fibre.waits = place;
  if (place == kBarrier) release_barrier();
  while (fibre.waits) to_scheduler(fibre, false);
}

void resume(Fibre& fibre) {
  block.running = &fibre;
  const Switch change(fibre.stack.get(), kStack);
  swapcontext(&block.scheduler, &fibre.context);
  change.back();
}

std::vector<int> permutation(int count) {
  std::vector<int> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), 0);
  if (order == 1) std::reverse(places.begin(), places.end());
  if (order > 1) std::shuffle(places.begin(), places.end(), block.shuffle);
  return places;
}

[[noreturn]] void deadlock() {
  std::string text = "threads wait for each other in vain:";
  for (const auto& fibre : block.fibres)
    if (fibre->waits) text += " " + std::to_string(fibre->here.thread) + " at a " + fibre->waits;
  throw std::logic_error(text.substr(0, 400));
}

void run_block(int x, int y, int threads, std::byte* shared) {
  block.warps.assign(static_cast<std::size_t>(threads / kLanes), Warp{});
  while (static_cast<int>(block.fibres.size()) < threads) block.fibres.push_back(std::make_unique<Fibre>());
  block.fibres.resize(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) {
    Fibre& fibre = *block.fibres[static_cast<std::size_t>(thread)];
    fibre.here = {thread, threads, x, y, shared};
    fibre.waits = nullptr;
    fibre.done = false;
    fibre.meetings = 0;
    fibre.open.clear();
    fibre.committed.clear();
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, begin, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    bool moved = false;
    for (const int thread : permutation(threads)) {
      Fibre& fibre = *block.fibres[static_cast<std::size_t>(thread)];
      if (fibre.done || fibre.waits) continue;
      resume(fibre);
      moved = true;
      if (block.failure) std::rethrow_exception(std::exchange(block.failure, nullptr));
    }
    for (const auto& fibre : block.fibres) alive = alive || !fibre->done;
    if (alive && !moved) deadlock();
  }
}

void perform(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.there)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
}

void require_aligned(const void* pointer, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16) throw std::logic_error(std::string(what) + " is not aligned to 16 bytes.");
}

}  // namespace

void run(Grid grid, int threads, std::size_t shared, const std::function<void()>& kernel) {
  if (threads % kLanes) throw std::logic_error("a block has whole warps here, not " + std::to_string(threads) + " threads.");
  block.kernel = &kernel;
  block.shuffle.seed(order);
  const int count = static_cast<int>(grid.x * grid.y);
  for (const int place : permutation(count)) {
    const std::unique_ptr<std::byte, decltype(&std::free)> memory(static_cast<std::byte*>(std::aligned_alloc(128, (shared + 127) / 128 * 128 + 128)), &std::free);
    std::memset(memory.get(), 0xff, shared);
    run_block(place % static_cast<int>(grid.x), place / static_cast<int>(grid.x), threads, memory.get());
  }
}

const Here& here() { return block.running->here; }

void sync() { await(kBarrier); }

void sync_warp() { meet("warp barrier", nullptr, 0); }

const Lane* meet(const char* place, const void* brought, std::size_t bytes) {
  Fibre& fibre = *block.running;
  const std::size_t first = static_cast<std::size_t>(fibre.here.thread) / kLanes * kLanes;
  Warp& warp = block.warps[first / kLanes];
  Lane* slots = warp.brought[fibre.meetings++ % 2];
  if (bytes) std::memcpy(slots[fibre.here.thread % kLanes], brought, bytes);
  if (++warp.arrived < kLanes) {
    await(place);
    return slots;
  }
  warp.arrived = 0;
  for (std::size_t lane = first; lane < first + kLanes; ++lane) {
    Fibre& other = *block.fibres[lane];
    if (&other != &fibre && (!other.waits || std::string(other.waits) != place))
      throw std::logic_error("lanes of one warp meet in a " + std::string(place) + " and in something else.");
    other.waits = nullptr;
  }
  return slots;
}

unsigned ballot(bool vote) {
  const Lane* votes = meet("ballot", &vote, sizeof(vote));
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<unsigned>(std::to_integer<int>(votes[lane][0]) != 0) << lane;
  return bits;
}

void load_matrices(std::uint32_t (&into)[4], const std::byte* row) {
  require_aligned(row, "a matrix's row");
  const Lane* rows = meet("ldmatrix", static_cast<const void*>(&row), sizeof(const std::byte*));
  const int lane = here().thread % kLanes;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const std::byte* from = nullptr;
    std::memcpy(static_cast<void*>(&from), rows[matrix * 8 + lane / 4], sizeof(const std::byte*));
    std::memcpy(&into[matrix], from + static_cast<std::ptrdiff_t>(lane % 4) * 4, 4);
  }
}

void copy_async(std::byte* to, const void* from, bool there) {
  require_aligned(to, "where a copy goes");
  require_aligned(from, "where a copy comes from");
  block.running->open.push_back({to, from, there});
}

void commit_copies() { block.running->committed.push_back(std::exchange(block.running->open, {})); }

void await_copies(int pending) {
  auto& groups = block.running->committed;
  for (; static_cast<int>(groups.size()) > pending; groups.pop_front()) perform(groups.front());
}

float from_half(std::uint16_t bits) { return half_to_float(bits); }
std::uint16_t to_half(float value) { return float_to_half(value); }
std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace moetrt::kernels::emulator
