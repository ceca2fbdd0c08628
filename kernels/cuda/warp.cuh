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

// d = a b + c with half as many columns of a and rows of b: a0 and a1 are the first two words of a.
__device__ inline void MultiplyHalf(float (&d)[4], const float (&c)[4], uint32_t a0, uint32_t a1,
                                    uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
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

// Where shared memory lies, as LoadShared takes it.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline uint2 LoadShared(uint32_t address) {
  uint2 words;
  asm("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(words.x), "=r"(words.y) : "r"(address));
  return words;
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
