// Runs kernels on a CPU, a block at a time, a fibre per thread, so that their indices, barriers and copies are tested where there is no GPU. Tests only.
//
// What a GPU may do in any order is done in an order that the caller chooses (`order`), copies happen when they are waited for and not before, shared
// memory begins as rubbish: a missing barrier or wait gives other numbers. Lanes of a warp that meet in different instructions, and barriers that not
// all threads reach, are errors. Timing, memory banks and a GPU's own rounding of products are not imitated.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace moetrt::kernels::emulator {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

struct Here {
  int thread, threads, block, block_row;
  std::byte* shared;
};

// In which order fibres of a block go on, and blocks start: 0 forwards, 1 backwards, else shuffled by that seed.
extern unsigned order;

// Throws std::logic_error: threads wait for each other in vain, or did what a GPU has no meaning for.
void run(Grid grid, int threads, std::size_t shared, const std::function<void()>& kernel);

const Here& here();
void sync();
void sync_warp();
unsigned ballot(bool vote);
void load_matrices(std::uint32_t (&into)[4], const std::byte* row);
void copy_async(std::byte* to, const void* from, bool there);
void commit_copies();
void await_copies(int pending);

constexpr std::size_t kBrought = 32;  // bytes that a lane can bring
using Lane = std::byte[kBrought];

// Meets the other lanes of the warp at `place`, an instruction's name. :returns: what each lane brought, to be read before the next meeting.
const Lane* meet(const char* place, const void* brought, std::size_t bytes);

float from_half(std::uint16_t bits);
std::uint16_t to_half(float value);
std::uint16_t to_bfloat16(float value);

template <typename Number>
Number from_lane(Number value, int lane) {
  Number found;
  std::memcpy(&found, meet("shuffle", &value, sizeof(value))[lane], sizeof(found));
  return found;
}

// The fragments of PTX's mma.m16n8k16 and m16n8k32, which are the same in bytes: a lane's words of a are rows lane / 4 and that + 8, of b the column
// lane / 4, four bytes from 4 (lane % 4) on, and sixteen further; of the sum the columns 2 (lane % 4) and the next.
template <typename Element, int kDepth, typename Accumulator, typename Widen>
void multiply(Accumulator (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Widen widen) {
  std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const Lane* all = meet("mma", mine, sizeof(mine));
  const int lane = here().thread % 32, word = 4 / static_cast<int>(sizeof(Element)), half = kDepth / 2;
  const auto element = [&](const Lane& words, int index) {
    Element number;
    std::memcpy(&number, words + index * static_cast<int>(sizeof(Element)), sizeof(Element));
    return widen(number);
  };
  for (int place = 0; place < 4; ++place) {
    const int row = lane / 4 + place / 2 * 8, column = lane % 4 * 2 + place % 2;
    for (int k = 0; k < kDepth; ++k) {
      const int quarter = k % half / word, within = k % word, upper = k / half;
      acc[place] += element(all[row % 8 * 4 + quarter], (upper * 2 + row / 8) * word + within) * element(all[column * 4 + quarter], (4 + upper) * word + within);
    }
  }
}

}  // namespace moetrt::kernels::emulator
