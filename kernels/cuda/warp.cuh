// The instructions of a GPU that C++ has no name for, each in one small function. Where
// FQ_EMULATED is set, the same functions for the host come from the tests' emulation of a GPU.
#pragma once

#include <cstdint>

#ifdef FQ_EMULATED
#include <cuda_emulation.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Dynamic shared memory of the thread block as bytes, aligned to 16.
#define FQ_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace fq {

inline constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// d += a b: a is [16][16] FP16, b [16][8] FP16, d [16][8] FP32, spread over the warp as
// mma.m16n8k16 defines (lane 4g + t: rows g and g + 8 of a and d, column g of b).
__device__ inline void MultiplyAdd(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// d = a b rounded to FP16: the pairs of rows g and g + 8.
__device__ inline void MultiplyToHalves(uint32_t (&d)[2], const uint4& a, uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, "
      "{%8,%8};"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(0));
}

// Of pairs of FP16 that are not negative, the lower one in each half.
__device__ inline uint32_t LowerHalves(uint32_t a, uint32_t b, uint32_t c) {
#if __CUDA_ARCH__ >= 900
  return __vimin3_u16x2(a, b, c);
#else
  const __half2 two =
      __hmin2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  const __half2 lowest = __hmin2(two, *reinterpret_cast<const __half2*>(&c));
  return *reinterpret_cast<const uint32_t*>(&lowest);
#endif
}

// sum + 0 * pair in each half: NaN where the pair is infinite or NaN.
__device__ inline uint32_t AddNothing(uint32_t sum, uint32_t pair) {
  const __half2 added = __hfma2(*reinterpret_cast<const __half2*>(&pair), __half2half2(__half{}),
                                *reinterpret_cast<const __half2*>(&sum));
  return *reinterpret_cast<const uint32_t*>(&added);
}

// Of pairs of FP16, the larger magnitude in each half.
__device__ inline uint32_t LargerHalves(uint32_t a, uint32_t b) {
  const __half2 larger = __hmax2(__habs2(*reinterpret_cast<const __half2*>(&a)),
                                 __habs2(*reinterpret_cast<const __half2*>(&b)));
  return *reinterpret_cast<const uint32_t*>(&larger);
}

// |a - b|^2 of 2 kPairs FP16, rounded to FP16 at every step, in the low half.
template <int kPairs>
__device__ inline uint32_t HalfDistance(const uint32_t* a, const uint32_t* b) {
  __half2 sum;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const __half2 x =
        __hsub2(*reinterpret_cast<const __half2*>(a + i), *reinterpret_cast<const __half2*>(b + i));
    sum = i == 0 ? __hmul2(x, x) : __hfma2(x, x, sum);
  }
  const __half2 both = __hadd2(__low2half2(sum), __high2half2(sum));
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Four of the eight bytes of `low` (0..3) and `high` (4..7); a digit of `which` picks each.
__device__ inline uint32_t PickBytes(uint32_t low, uint32_t high, uint32_t which) {
  return __byte_perm(low, high, which);
}

// Transposes the [8][8] matrix of 16-bit elements that the warp holds, two elements a lane.
__device__ inline uint32_t Transpose(uint32_t pair) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// What lies in device memory and is not written while the kernel runs.
template <typename T>
__device__ inline T LoadConstant(const void* from) {
  return __ldg(static_cast<const T*>(from));
}

// Begins to copy 16 bytes of device memory to a shared address; they are there after FinishCopies
// and a barrier.
__device__ inline void BeginCopy(const void* from, uint32_t to) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}
__device__ inline void FinishCopies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// Four 8 x 8 matrices of FP16 in shared memory, one a word: lane 4 g + t gets columns 2 t and 2 t +
// 1 of row g of each. Lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline uint4 LoadTile(const std::byte* row) {
  uint4 tile;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tile.x), "=r"(tile.y), "=r"(tile.z), "=r"(tile.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
  return tile;
}

// The same, each matrix transposed: lane 4 g + t gets column g of rows 2 t and 2 t + 1.
__device__ inline uint4 LoadTransposed(const std::byte* row) {
  uint4 tile;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tile.x), "=r"(tile.y), "=r"(tile.z), "=r"(tile.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
  return tile;
}

// Where shared memory lies, as LoadSharedWord takes it.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline uint32_t LoadSharedWord(uint32_t address) {
  uint32_t word;
  asm("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
__device__ inline float2 LoadSharedPair(uint32_t address) {
  float2 pair;
  asm("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
  return pair;
}

// add + the sum of the products of the bytes of `a` and `b`.
__device__ inline uint32_t DotBytes(uint32_t a, uint32_t b, uint32_t add) {
  return __dp4a(a, b, add);
}

// x between 0 and 1.
__device__ inline float Saturate(float x) { return __saturatef(x); }

// Orders shared memory within the warp.
__device__ inline void WarpBarrier() { __syncwarp(); }

// Value of the lane whose number differs in the bits of `mask`.
template <typename T>
__device__ inline T FromLaneXor(T value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}

// Value of lane `lane`.
template <typename T>
__device__ inline T FromLane(T value, int lane) {
  return __shfl_sync(kWholeWarp, value, lane);
}

// The lanes of the warp for which `value` holds, as bits.
__device__ inline uint32_t Ballot(bool value) { return __ballot_sync(kWholeWarp, value); }

// The highest value that a lane of the warp has.
__device__ inline int32_t HighestOfWarp(int32_t value) {
  return __reduce_max_sync(kWholeWarp, value);
}

// Number of the lowest bit that is set; `bits` is not 0.
__device__ inline int LowestBit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// Adds to a number in shared memory and returns what it was.
__device__ inline int FetchAdd(int* number, int value) { return atomicAdd(number, value); }

// Two FP16 as FP32; low half first.
__device__ inline float2 WidenHalves(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

__device__ inline uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline uint32_t PackBFloat16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace fq
#endif
