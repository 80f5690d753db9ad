// What kernels use of the hardware, by name: PTX on a GPU (PTX ISA 8.8, SM80 and newer), the emulator's functions of the same meaning on a CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <string>

#include "moetrt/error.hpp"

#define MOETRT_DEVICE __device__ __forceinline__
#define MOETRT_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define MOETRT_UNROLL _Pragma("unroll")

#else

#include "emulator.hpp"

#define MOETRT_DEVICE inline
#define MOETRT_KERNEL(threads) void
#define MOETRT_UNROLL

#endif

namespace moetrt::kernels {

constexpr int kWarp = 32;

// Numbers as they lie in memory; arithmetic is in float.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};
using Int8 = std::int8_t;

template <typename To, typename From>
MOETRT_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  union {
    From from;
    To to;
  } both{from};
  return both.to;
}

#ifdef __CUDACC__

using Stream = cudaStream_t;

inline void require_success(cudaError_t status) {
  if (status != cudaSuccess)
    throw Error(std::string("a kernel cannot be launched: ") + cudaGetErrorString(status) + ".", "Kernels are compiled for the generations 8.0, 9.0, 10.0 and 12.0.");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, Stream stream, Arguments... arguments) {
  if (shared > 48 * 1024) require_success(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<grid, threads, shared, stream>>>(static_cast<Parameters>(arguments)...);
  require_success(cudaGetLastError());
}

MOETRT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
MOETRT_DEVICE int threads() { return static_cast<int>(blockDim.x); }
MOETRT_DEVICE int block() { return static_cast<int>(blockIdx.x); }
MOETRT_DEVICE int block_row() { return static_cast<int>(blockIdx.y); }
MOETRT_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(128) std::byte memory[];
  return memory;
}
MOETRT_DEVICE void sync() { __syncthreads(); }
MOETRT_DEVICE void sync_warp() { __syncwarp(); }

template <typename Number>
MOETRT_DEVICE Number from_lane(Number value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
MOETRT_DEVICE unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
MOETRT_DEVICE int ones(unsigned bits) { return __popc(bits); }
MOETRT_DEVICE void add_shared(int* counter, int number) { atomicAdd(counter, number); }

// Four 8 x 16-byte matrices; lane i points at row i % 8 of matrix i / 8, and gets four bytes of row lane / 4 of each.
MOETRT_DEVICE void load_matrices(std::uint32_t (&into)[4], const std::byte* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(address) : "memory");
}

// Sixteen bytes from global to shared memory, whenever the hardware likes until waited for; zeros when not `there`.
MOETRT_DEVICE void copy_async(std::byte* to, const void* from, bool there) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0) : "memory");
}
MOETRT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
MOETRT_DEVICE void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// acc (16 x 8) += a (16 x 32 bytes) · b (32 bytes x 8).
MOETRT_DEVICE void multiply(std::int32_t (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Int8) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MOETRT_DEVICE void multiply(float (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MOETRT_DEVICE void multiply(float (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], BFloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MOETRT_DEVICE float widen(Half number) { return __half2float(__ushort_as_half(number.bits)); }
MOETRT_DEVICE float widen(BFloat16 number) { return bits_as<float>(static_cast<std::uint32_t>(number.bits) << 16); }
MOETRT_DEVICE void narrow(float value, Half& into) { into.bits = __half_as_ushort(__float2half_rn(value)); }
MOETRT_DEVICE void narrow(float value, BFloat16& into) { into.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
// Products and sums that the compiler must not contract: references on a CPU round twice too.
MOETRT_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
MOETRT_DEVICE float sum(float a, float b) { return __fadd_rn(a, b); }
MOETRT_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
MOETRT_DEVICE float exponential(float value) { return expf(value); }
MOETRT_DEVICE float to_even(float value) { return rintf(value); }

#else

using Stream = void*;

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), emulator::Grid grid, int threads, std::size_t shared, Stream, Arguments... arguments) {
  emulator::run(grid, threads, shared, [&] { kernel(static_cast<Parameters>(arguments)...); });
}
using dim3 = emulator::Grid;

inline int thread() { return emulator::here().thread; }
inline int threads() { return emulator::here().threads; }
inline int block() { return emulator::here().block; }
inline int block_row() { return emulator::here().block_row; }
inline std::byte* shared_memory() { return emulator::here().shared; }
inline void sync() { emulator::sync(); }
inline void sync_warp() { emulator::sync_warp(); }
template <typename Number>
Number from_lane(Number value, int lane) {
  static_assert(sizeof(Number) <= 8);
  return emulator::from_lane(value, lane);
}
inline unsigned ballot(bool vote) { return emulator::ballot(vote); }
inline int ones(unsigned bits) { return __builtin_popcount(bits); }
inline void add_shared(int* counter, int number) { *counter += number; }
inline void load_matrices(std::uint32_t (&into)[4], const std::byte* row) { emulator::load_matrices(into, row); }
inline void copy_async(std::byte* to, const void* from, bool there) { emulator::copy_async(to, from, there); }
inline void commit_copies() { emulator::commit_copies(); }
template <int kPending>
void await_copies() {
  emulator::await_copies(kPending);
}
inline float widen(Half number) { return emulator::from_half(number.bits); }
inline float widen(BFloat16 number) { return bits_as<float>(static_cast<std::uint32_t>(number.bits) << 16); }
inline void narrow(float value, Half& into) { into.bits = emulator::to_half(value); }
inline void narrow(float value, BFloat16& into) { into.bits = emulator::to_bfloat16(value); }
inline void multiply(std::int32_t (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Int8) {
  emulator::multiply<Int8, 32>(acc, a, b, [](Int8 number) { return static_cast<std::int32_t>(number); });
}
inline void multiply(float (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Half) {
  emulator::multiply<Half, 16>(acc, a, b, [](Half number) { return widen(number); });
}
inline void multiply(float (&acc)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], BFloat16) {
  emulator::multiply<BFloat16, 16>(acc, a, b, [](BFloat16 number) { return widen(number); });
}
inline float product(float a, float b) { return a * b; }
inline float sum(float a, float b) { return a + b; }
inline float quotient(float a, float b) { return a / b; }
inline float exponential(float value) { return std::exp(value); }
inline float to_even(float value) { return std::nearbyint(value); }

#endif

MOETRT_DEVICE float widen(float number) { return number; }
MOETRT_DEVICE void narrow(float value, float& into) { into = value; }

MOETRT_DEVICE int lane() { return thread() % kWarp; }
MOETRT_DEVICE int warp() { return thread() / kWarp; }

// Whatever lane has it.
MOETRT_DEVICE float largest_of_warp(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float other = from_lane(value, lane() ^ distance);
    value = other > value ? other : value;
  }
  return value;
}

// A symmetric int8: half to even, saturated.
MOETRT_DEVICE Int8 to_int8(float value) {
  const float whole = to_even(value);
  return static_cast<Int8>(whole >= -128.0f ? (whole <= 127.0f ? whole : 127.0f) : -128.0f);
}

MOETRT_DEVICE float silu(float value) { return quotient(value, sum(1.0f, exponential(-value))); }

}  // namespace moetrt::kernels
