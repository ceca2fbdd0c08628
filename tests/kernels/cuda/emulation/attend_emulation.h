// The functions of kernels/cuda/attend_ptx.cuh on the emulated GPU (cuda_emulation.h), by the same
// names. Prefetches do nothing; 2^x is the host's. Not thread-safe.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cuda/attend_shared.h"
#include "tests/kernels/cuda/emulation/cuda_emulation.h"

#define __shared__ static  // blocks run one after the other, in one thread
#define __grid_constant__
#define FQ_ATTEND_SHARED(name) \
  std::byte* const name = reinterpret_cast<std::byte*>(::fq::emulation::SharedMemory())

struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(2) char2 {
  signed char x, y;
};

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return fq::FromLaneXor(value, mask);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return fq::FromLane<T>(fq::emulation::Exchange(&value, sizeof(value)), lane);
}
inline bool __any_sync(unsigned, bool value) {
  const std::byte* slots = fq::emulation::Exchange(&value, sizeof(value));
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any |= fq::FromLane<bool>(slots, lane);
  return any;
}
inline float __uint_as_float(uint32_t bits) { return fq::FloatFromBits(bits); }
inline void __syncwarp() { fq::emulation::WarpBarrier(); }
inline void __trap() { std::terminate(); }

namespace fq {

using std::max;
using std::min;

// Byte i of the result is the byte of b:a that nibble i of the selector names.
inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const int from = static_cast<int>(selector >> (4 * i) & 7u);
    result |= static_cast<uint32_t>(bytes >> (8 * from) & 255u) << (8 * i);
  }
  return result;
}

inline uint32_t DotBytes(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += (a >> (8 * i) & 255u) * (b >> (8 * i) & 255u);
  return sum;
}

inline float Exp2(float x) { return std::exp2(x); }
inline float MinusInfinity() { return -std::numeric_limits<float>::infinity(); }
inline float2 UnpackHalves(uint32_t pair) { return WidenHalves(pair); }

inline uint32_t SubtractPairs(uint32_t a, uint32_t b) {
  const float2 x = WidenHalves(a), y = WidenHalves(b);
  return PackHalves(x.x - y.x, x.y - y.y);
}

template <bool kBf16>
uint32_t PackPair(float low, float high) {
  return kBf16 ? PackBFloat16(low, high) : PackHalves(low, high);
}

// c += A B; rows and columns of the registers as mma.m16n8k16 defines them.
template <bool kBf16>
void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const std::byte* slots = emulation::Exchange(mine, sizeof(mine));
  const auto element = [&](int lane, int word, int half) {
    uint32_t words[6];
    std::memcpy(words, slots + lane * emulation::kSlotBytes, sizeof(words));
    const uint16_t bits = static_cast<uint16_t>(words[word] >> (16 * half));
    return kBf16 ? BFloat16ToFloat(bits) : HalfToFloat(bits);
  };
  const int lane = static_cast<int>(threadIdx.x & 31u), g = lane >> 2, t = lane & 3;
  for (int i = 0; i < 4; ++i) {
    const int high = i >> 1, column = 2 * t + (i & 1);
    for (int k = 0; k < 16; ++k) {
      const int quarter = k % 8 / 2, upper = k / 8;
      c[i] += element(4 * g + quarter, high + 2 * upper, k & 1) *
              element(4 * column + quarter, 4 + upper, k & 1);
    }
  }
}

inline void MultiplyFrom(float (&d)[4], float4 c, const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
  d[0] = c.x;
  d[1] = c.y;
  d[2] = c.z;
  d[3] = c.w;
  Multiply<false>(d, a, b0, b1);
}

template <int kSize>
const std::byte* Advance(const std::byte* base, uint32_t count) {
  return base + static_cast<uint64_t>(count) * kSize;
}

// `Word` must lie at a multiple of its size, as the GPU demands.
template <typename Word>
Word LoadAligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Word) != 0) __trap();
  Word word;
  std::memcpy(&word, address, sizeof(word));
  return word;
}
template <int kOffset>
uint32_t LoadShared(uint32_t address) {
  return LoadAligned<uint32_t>(emulation::SharedMemory() + (kOffset - kSharedBase) + address);
}
template <int kOffset>
uint2 LoadShared2(uint32_t address) {
  return LoadAligned<uint2>(emulation::SharedMemory() + (kOffset - kSharedBase) + address);
}

template <int kBytes, int kOffset>
void LoadCodes(uint32_t* words, const std::byte* address, bool wanted) {
  if (!wanted) return;
  if (reinterpret_cast<uintptr_t>(address + kOffset) % kBytes != 0) __trap();
  if (kBytes < 4) words[0] = 0;
  std::memcpy(words, address + kOffset, kBytes);
}

inline void PrefetchToL2(const std::byte*, int) {}
inline uint32_t LoadNow(const void* address) { return LoadAligned<uint32_t>(address); }
inline uint2 LoadNow2(const void* address) { return LoadAligned<uint2>(address); }
inline uint4 LoadNow4(const void* address) { return LoadAligned<uint4>(address); }
inline void WaitForPrevious() {}
inline void LetNextStart() {}
inline uint32_t PageEntry(const uint32_t* table, int page) { return table[page]; }
inline int LaneAfter(int lane, uint32_t loaded, uint32_t zero) {
  return lane | static_cast<int>(loaded & zero);
}
inline bool SharedStartsAt(const void*, uint32_t) { return true; }

}  // namespace fq
