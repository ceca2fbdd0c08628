// A small integer generator with the same sequence on every machine, for golden files and seeded
// tests.
#pragma once

#include <cstdint>

namespace fq {

// SplitMix64. Not thread-safe.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  // 0 .. bound - 1.
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>((Next() >> 32) * bound >> 32); }

  // -1 .. 1, exact in float.
  double Uniform() {
    return static_cast<double>(static_cast<int64_t>(Next() >> 40) - (1 << 23)) / (1 << 23);
  }

  // About a unit Gaussian: a sum of 12 uniforms, so that no libm decides the bits.
  double Gaussian() {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += Uniform();
    return sum * 0.5;
  }

 private:
  uint64_t state_;
};

}  // namespace fq
