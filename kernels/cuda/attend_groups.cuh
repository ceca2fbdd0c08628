// Channel groups (FORMAT.md section 2) from code bytes to MMA registers. Device code, also compiled
// at run time.
#pragma once

#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/attend_shared.h"

namespace fq {

inline constexpr int kTiles = 4;  // of 16 tokens, in a page

// What a lane adds to the address of a lookup.
struct LaneAddress {
  uint32_t word;  // 4-byte entries
  uint32_t pair;  // 8-byte entries
};

FQ_HD constexpr int RawWords(int bits) { return bits == 8 ? 4 : bits == 4 ? 2 : bits == 0 ? 0 : 1; }

// Byte `kByte` of `codes` times 256 plus what the lane adds.
template <int kByte>
FQ_DEVICE uint32_t RowAddress(uint32_t codes, uint32_t lane) {
  return Permute(codes, lane, 0x5504u | kByte << 4);
}

// Whether this kernel reads refinements, and so which table is the third (attend_shared.h).
#ifdef FQ_REFINED
inline constexpr bool kRefinedTables = true;
#else
inline constexpr bool kRefinedTables = false;
#endif

// Entry of byte `kByte` of `codes` in a replicated or in a plain table.
template <int kTable, int kSide, int kByte>
FQ_DEVICE uint32_t ReplicatedEntry(uint32_t codes, const LaneAddress& lane) {
  return LoadShared<kSharedBase + kTable + 128 * kSide>(RowAddress<kByte>(codes, lane.word));
}
template <int kTable, int kSide, int kByte>
FQ_DEVICE uint32_t PlainEntry(uint32_t codes) {
  return LoadShared<kSharedBase + kTable + 4 * kSide>((codes >> (8 * kByte) & 255u) * 8);
}

template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint32_t EntryOfClass4(uint32_t codes, const LaneAddress& lane) {
  if constexpr (kRefinement) {
    return PlainEntry<kSharedRefinement + 4 * kClass4Words, kSide, kByte>(codes);
  } else {
    return ReplicatedEntry<kSharedClass4, kSide, kByte>(codes, lane);
  }
}
template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint32_t EntryOfClass2(uint32_t codes, const LaneAddress& lane) {
  return ReplicatedEntry < kRefinement ? kSharedThird : kSharedClass2, kSide, kByte > (codes, lane);
}
template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint2 EntryOfClass1(uint32_t codes, const LaneAddress& lane) {
  if constexpr (kRefinedTables) {
    constexpr int kTable = kRefinement ? kSharedRefinement + 4 * kClass1Words : kSharedPlainClass1;
    return LoadShared2<kSharedBase + kTable + 8 * kSide>((codes >> (8 * kByte) & 255u) * 16);
  } else {
    return LoadShared2<kSharedBase + kSharedThird + 128 * kSide>(
        RowAddress<kByte>(codes, lane.pair));
  }
}

// Registers [tile][r] of a group. kSide 0 = K, 1 = V. Class 8 gives byte - 128 for V, and
// byte + 1024 for K, where the query's bias takes the 1152 away.
template <int kBits, int kSide, bool kRefinement>
FQ_DEVICE void DecodeGroup(const uint32_t* raw, const LaneAddress& lane,
                           uint32_t (&out)[kTiles][2]) {
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

// Moves the tables of a record to shared memory, loads first, so that other work fits in between.
template <int kThreads>
class TableCopy {
 public:
  FQ_DEVICE void Load(const std::byte* record) {
    const uint32_t* lookups = reinterpret_cast<const uint32_t*>(record);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Row(i);
      if (row >= 512) continue;
      two_[i] = lookups[kClass2Words + row];
      four_[i] = lookups[kClass4Words + row];
      one_[i] = reinterpret_cast<const uint2*>(lookups + kClass1Words)[row];
      if constexpr (kRefinedTables) {
        refined_two_[i] = lookups[kLookupWords + kClass2Words + row];
        refinement_[i] = reinterpret_cast<const uint4*>(lookups + kLookupWords)[row];
      }
    }
  }

  // Each thread writes whole rows, starting at another column than its neighbours, so that the
  // stores of a quarter warp go to different banks.
  FQ_DEVICE void Store(std::byte* shared) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Row(i);
      if (row >= 512) continue;
      for (int k = 0; k < 8; ++k) {
        const int at = row * 128 + ((k + row) & 7) * 16;
        Put(shared + kSharedClass2 + at, Four(two_[i], two_[i]));
        Put(shared + kSharedClass4 + at, Four(four_[i], four_[i]));
        if constexpr (kRefinedTables) {
          Put(shared + kSharedThird + at, Four(refined_two_[i], refined_two_[i]));
        } else {
          Put(shared + kSharedThird + at, Four(one_[i].x, one_[i].y));
        }
      }
      if constexpr (kRefinedTables) {
        Put(shared + kSharedRefinement + 16 * row, refinement_[i]);
        *reinterpret_cast<uint2*>(shared + kSharedPlainClass1 + 8 * row) = one_[i];
      }
    }
  }

 private:
  static constexpr int kRows = (512 + kThreads - 1) / kThreads;
  static_assert(kLookupWords == 4 * 512, "a row of each");
  FQ_DEVICE static int Row(int i) { return static_cast<int>(threadIdx.x) + i * kThreads; }
  FQ_DEVICE static void Put(std::byte* to, uint4 value) { *reinterpret_cast<uint4*>(to) = value; }
  FQ_DEVICE static uint4 Four(uint32_t x, uint32_t y) { return make_uint4(x, y, x, y); }

  uint32_t two_[kRows], four_[kRows], refined_two_[kRows];
  uint2 one_[kRows];
  uint4 refinement_[kRows];
};

}  // namespace fq
