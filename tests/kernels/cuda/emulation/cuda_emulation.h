// A GPU for tests: kernels compiled for the host. The threads of a block are fibers that switch at
// barriers and warp instructions only, in an order that the test picks; shared memory is poisoned
// and ends at a page without access; blocks run one after the other. What kernels/cuda/warp.cuh
// gives on a GPU, by the same names. Not thread-safe.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/codec/float_convert.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define FQ_DYNAMIC_SHARED(name) unsigned char* const name = ::fq::emulation::SharedMemory()
#define __syncthreads() ::fq::emulation::BlockBarrier()
#define threadIdx (::fq::emulation::Thread())
#define blockIdx (::fq::emulation::Block())
#define blockDim (::fq::emulation::BlockSize())

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace fq {
namespace emulation {

struct Index {
  unsigned x;
};

// Order in which the threads of a block run between two switches.
enum class Schedule { kForward, kBackward, kShuffled };
void SetSchedule(Schedule schedule);

// Runs `body` once per thread of every block. Ends the process with a message on a deadlock.
void RunGrid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body);

Index Thread();
Index Block();
Index BlockSize();
unsigned char* SharedMemory();
// Ends the process with a message when the address is shared memory, which loads of constants do
// not reach.
void CheckIsGlobal(const void* address);
void BlockBarrier();
void WarpBarrier();

// Puts `bytes` bytes where the warp sees them and waits for the other lanes; lane i's are at the
// result + i * kSlotBytes until the warp's next exchange but one.
inline constexpr size_t kSlotBytes = 64;
const std::byte* Exchange(const void* value, size_t bytes);

}  // namespace emulation

inline constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

template <typename T>
T LoadConstant(const void* from) {
  emulation::CheckIsGlobal(from);
  return *static_cast<const T*>(from);
}

inline void FinishCopies() {}

inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) -
                               emulation::SharedMemory());
}
inline void BeginCopy(const void* from, uint32_t to) {
  *reinterpret_cast<uint4*>(emulation::SharedMemory() + to) = LoadConstant<uint4>(from);
}
inline uint32_t LoadSharedWord(uint32_t address) {
  return *reinterpret_cast<const uint32_t*>(emulation::SharedMemory() + address);
}
inline float2 LoadSharedPair(uint32_t address) {
  return *reinterpret_cast<const float2*>(emulation::SharedMemory() + address);
}

inline uint32_t DotBytes(uint32_t a, uint32_t b, uint32_t add) {
  for (int i = 0; i < 4; ++i) add += (a >> (8 * i) & 255u) * (b >> (8 * i) & 255u);
  return add;
}

inline float Saturate(float x) { return x < 0.0f ? 0.0f : x < 1.0f ? x : 1.0f; }

inline void WarpBarrier() { emulation::WarpBarrier(); }

template <typename T>
T FromLane(const std::byte* slots, int lane) {
  T value;
  std::memcpy(&value, slots + lane * emulation::kSlotBytes, sizeof(T));
  return value;
}

template <typename T>
T FromLaneXor(T value, int mask) {
  const std::byte* slots = emulation::Exchange(&value, sizeof(T));
  return FromLane<T>(slots, static_cast<int>((threadIdx.x & 31u) ^ static_cast<unsigned>(mask)));
}

template <typename T>
T FromLane(T value, int lane) {
  return FromLane<T>(emulation::Exchange(&value, sizeof(T)), lane);
}

inline uint32_t Ballot(bool value) {
  const std::byte* slots = emulation::Exchange(&value, sizeof(value));
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    bits |= static_cast<uint32_t>(FromLane<bool>(slots, lane)) << lane;
  }
  return bits;
}

inline int32_t HighestOfWarp(int32_t value) {
  const std::byte* slots = emulation::Exchange(&value, sizeof(value));
  for (int lane = 0; lane < 32; ++lane) {
    const auto other = FromLane<int32_t>(slots, lane);
    if (other > value) value = other;
  }
  return value;
}

inline int LowestBit(uint32_t bits) { return __builtin_ctz(bits); }

inline int FetchAdd(int* number, int value) {
  const int was = *number;
  *number += value;
  return was;
}

inline float2 WidenHalves(uint32_t pair) {
  return {HalfToFloat(static_cast<uint16_t>(pair & 0xFFFFu)),
          HalfToFloat(static_cast<uint16_t>(pair >> 16))};
}
inline uint32_t PackHalves(float low, float high) {
  return FloatToHalf(low) | static_cast<uint32_t>(FloatToHalf(high)) << 16;
}
inline uint32_t PackBFloat16(float low, float high) {
  return FloatToBFloat16(low) | static_cast<uint32_t>(FloatToBFloat16(high)) << 16;
}

inline uint32_t Transpose(uint32_t pair) {
  const std::byte* slots = emulation::Exchange(&pair, sizeof(pair));
  const unsigned lane = threadIdx.x & 31u, g = lane >> 2, t = lane & 3;
  // Row g of the transpose is column g: its elements 2t and 2t + 1 lie in rows 2t and 2t + 1.
  const auto element = [&](unsigned row) {
    return FromLane<uint32_t>(slots, static_cast<int>(4 * row + g / 2)) >> (16 * (g % 2)) & 0xFFFFu;
  };
  return element(2 * t) | element(2 * t + 1) << 16;
}

inline uint4 LoadTile(const std::byte* row) {
  const std::byte* slots = emulation::Exchange(&row, sizeof(row));
  const int g = static_cast<int>(threadIdx.x & 31u) / 4, t = static_cast<int>(threadIdx.x & 3u);
  const auto word = [&](int part) {
    return *reinterpret_cast<const uint32_t*>(FromLane<const std::byte*>(slots, 8 * part + g) +
                                              4 * t);
  };
  return make_uint4(word(0), word(1), word(2), word(3));
}

inline uint4 LoadTransposed(const std::byte* row) {
  const std::byte* slots = emulation::Exchange(&row, sizeof(row));
  const int g = static_cast<int>(threadIdx.x & 31u) / 4, t = static_cast<int>(threadIdx.x & 3u);
  const auto element = [&](int part, int token) -> uint32_t {
    return reinterpret_cast<const uint16_t*>(
        FromLane<const std::byte*>(slots, 8 * part + token))[g];
  };
  const auto word = [&](int part) { return element(part, 2 * t) | element(part, 2 * t + 1) << 16; };
  return make_uint4(word(0), word(1), word(2), word(3));
}

void MultiplyAdd(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1);

inline void MultiplyToHalves(uint32_t (&d)[2], const uint4& a, uint32_t b0, uint32_t b1) {
  float product[4] = {};
  MultiplyAdd(product, a, b0, b1);
  d[0] = PackHalves(product[0], product[1]);
  d[1] = PackHalves(product[2], product[3]);
}

// Calls f(low halves of a and b), then with the high ones, and packs what it returns.
template <typename F>
uint32_t EachHalf(uint32_t a, uint32_t b, const F& f) {
  const float2 x = WidenHalves(a), y = WidenHalves(b);
  return PackHalves(f(x.x, y.x), f(x.y, y.y));
}

inline uint32_t LowerHalves(uint32_t a, uint32_t b, uint32_t c) {
  const auto lowest = [&](int shift) {
    uint32_t found = a >> shift & 0xFFFFu;
    for (uint32_t other : {b, c}) {
      if ((other >> shift & 0xFFFFu) < found) found = other >> shift & 0xFFFFu;
    }
    return found << shift;
  };
  return lowest(0) | lowest(16);
}

inline uint32_t AddNothing(uint32_t sum, uint32_t pair) {
  return EachHalf(sum, pair, [](float p, float q) { return fmaf(q, 0.0f, p); });
}

inline uint32_t LargerHalves(uint32_t a, uint32_t b) {
  return EachHalf(a & 0x7FFF7FFFu, b & 0x7FFF7FFFu, [](float x, float y) { return x < y ? y : x; });
}

template <int kPairs>
uint32_t HalfDistance(const uint32_t* a, const uint32_t* b) {
  uint32_t sum = 0;
  for (int i = 0; i < kPairs; ++i) {
    const uint32_t x = EachHalf(a[i], b[i], [](float p, float q) { return p - q; });
    sum = EachHalf(x, sum, [](float p, float q) { return fmaf(p, p, q); });
  }
  return EachHalf(sum, sum >> 16 | sum << 16, [](float p, float q) { return p + q; });
}

inline uint32_t PickBytes(uint32_t low, uint32_t high, uint32_t which) {
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = which >> (4 * i) & 7u;
    picked |= ((digit < 4 ? low : high) >> (8 * (digit & 3u)) & 255u) << (8 * i);
  }
  return picked;
}

}  // namespace fq
