// Products of rows by a part of a panel (packed.hpp), of integers and of floats. Sums of integers are exact and those of floats have one order
// (products_float.hpp), so all kinds of processor give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moetrt::ops {

constexpr std::size_t kRows = 16;  // rows are filled up to a multiple of so many: some kinds write them all

// sums[row][output] = Σ values[row][input] · panel[input][output], the panel's values unsigned.
struct Product {
  const std::uint8_t* panel;  // from the first input on
  const std::int8_t* values;  // likewise
  std::size_t stride;         // bytes from row to row
  std::size_t rows;
  std::size_t inputs;  // a multiple of 4, of 32 for kinds with tiles
  std::int32_t* sums;  // (rows filled up to a multiple of 16, 16)
};

// y[row][output] = Σ values[row][input] · panel[input][output], of sixteen outputs.
struct FloatProduct {
  const std::uint8_t* panel;
  const float* values;
  std::size_t stride;  // floats from row to row
  std::size_t rows;
  std::size_t inputs;  // of bfloat16 even: rows and panels are filled up by a zero
  float* y;
  std::size_t y_stride;
  std::size_t step = 16;  // floats from input to input of a panel of float32
};

// y[row][column] = Σ rows[row][input] · columns[column][input].
struct Dots {
  const float* rows;
  std::size_t row_stride, row_count;
  const float* columns;
  std::size_t column_stride, column_count;
  std::size_t inputs;
  float* y;
  std::size_t y_stride;
};

// One way to multiply. A thread calls `begin` before its products of integers and `end` after them.
struct Kind {
  const char* name;
  void (*begin)(std::size_t inputs);
  void (*int8)(const Product& product);
  void (*int4)(const Product& product);
  void (*bfloat16)(const FloatProduct& product);
  void (*float32)(const FloatProduct& product);
  void (*dots)(const Dots& dots);
  void (*end)();
  // By a panel of floats of so many bits.
  [[nodiscard]] auto floats(int bits) const { return bits == 16 ? bfloat16 : float32; }
};

// What a kind does at the beginning and end that needs nothing done.
inline void idle(std::size_t /*inputs*/) {}
inline void idle() {}

// In plain C++: it runs everywhere, and is what the others are held against.
const Kind& plain();
// The others are null where processor or system do not have them. By AVX2 and FMA:
const Kind* avx2();
// By AVX-512 VNNI:
const Kind* vnni();
// By the tiles of AMX, for many rows:
const Kind* amx();

// The fastest here for so many rows, of blocks of so many inputs.
const Kind& kind_for(std::size_t rows, std::size_t block);

// Takes none that is faster than this one: "plain", "avx2", "vnni" or "amx". Until it is called, the environment's MOETRT_ISA says so, or nothing does.
// Throws Error: there is no such kind.
void hold_to(const std::string& name);

// The names of those that are taken here, the slowest first.
std::vector<std::string> kinds();

}  // namespace moetrt::ops
