// Channel groups (FORMAT.md section 2) from code bytes to MMA registers. Device code, also compiled
// at run time.
#pragma once

#include "kernels/cuda/attend_tables.cuh"

namespace fq {

inline constexpr int kTiles = 4;  // of 16 tokens, in a page

FQ_HD constexpr int RawWords(int bits) { return bits == 8 ? 4 : bits == 4 ? 2 : bits == 0 ? 0 : 1; }

// Registers [tile][r] of a group. kSide 0 = K, 1 = V. Class 8 gives byte - 128 for V, and
// byte + 1024 for K, where the query's bias takes the 1152 away.
template <int kBits, int kSide, bool kRefinement>
FQ_DEVICE void DecodeGroup(const uint32_t* raw, LaneColumns lane, uint32_t (&out)[kTiles][2]) {
  StaticFor<0, kTiles>([&](auto tile) {
    constexpr int j = decltype(tile)::value;
    if constexpr (kBits == 8) {
      out[j][0] = Permute(raw[j], 0x64646464u, 0x4140u);
      out[j][1] = Permute(raw[j], 0x64646464u, 0x4342u);
      if constexpr (kSide == 1) {
        out[j][0] = SubtractPairs(out[j][0], 0x64806480u);
        out[j][1] = SubtractPairs(out[j][1], 0x64806480u);
      }
    } else if constexpr (kBits == 4) {
      constexpr int kByte = 2 * j % 4;
      out[j][0] = EntryOfClass4<kSide, kRefinement, kByte>(raw[j / 2], lane);
      out[j][1] = EntryOfClass4<kSide, kRefinement, kByte + 1>(raw[j / 2], lane);
    } else if constexpr (kBits == 2) {
      const uint32_t word = EntryOfClass2<kSide, kRefinement, j>(raw[0], lane);
      out[j][0] = word;
      out[j][1] = word << 8;
    } else if constexpr (kBits == 1) {
      if constexpr (j % 2 == 0) {
        const uint2 words = EntryOfClass1<kSide, kRefinement, j / 2>(raw[0], lane);
        out[j][0] = words.x;
        out[j][1] = words.x << 8;
        out[j + 1][0] = words.y;
        out[j + 1][1] = words.y << 8;
      }
    } else {
      out[j][0] = out[j][1] = 0;
    }
  });
}

// Loads the code bytes of a group at `page` + kOffset.
template <int kBits, int kOffset>
FQ_DEVICE void LoadGroup(uint32_t* raw, const std::byte* page, int lane, bool wanted) {
  if constexpr (kBits != 0) {
    LoadCodes<2 * kBits, kOffset>(raw, Advance<2 * kBits>(page, lane), wanted);
  }
}

// Puts two groups into the A registers of one MMA step. V: the groups are its rows, the 16 tokens
// of a tile its columns. K: the groups are its columns, and MMA m takes its 16 tokens from two
// tiles, 2 (m / 2) and the next, r = m % 2 of both: so the two words of a class-1 entry are
// neighbouring registers, as they come out of shared memory.
template <int kSide>
FQ_DEVICE void JoinGroups(const uint32_t (&first)[kTiles][2], const uint32_t (&second)[kTiles][2],
                          uint32_t (&a)[kTiles][4]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    if constexpr (kSide == 0) {
      const int tile = m / 2 * 2, r = m % 2;
      a[m][0] = first[tile][r];
      a[m][1] = first[tile + 1][r];
      a[m][2] = second[tile][r];
      a[m][3] = second[tile + 1][r];
    } else {
      a[m][0] = first[m][0];
      a[m][1] = second[m][0];
      a[m][2] = first[m][1];
      a[m][3] = second[m][1];
    }
  }
}

// Token of a page, less g, of row g + 8 `high` of MMA m of K.
FQ_HD constexpr int KeyToken(int m, int high) { return 16 * (m / 2 * 2 + high) + 8 * (m % 2); }

}  // namespace fq
