// The tables of a head in shared memory: filling them, and lookups. Device code, also compiled at
// run time, where FQ_REFINED, FQ_REPLICATED_TABLES and FQ_NEEDED_TABLES say how they lie
// (attend_shared.h).
#pragma once

#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/attend_shared.h"

namespace fq {

#ifdef FQ_REFINED
inline constexpr bool kRefinedTables = true;
#else
inline constexpr bool kRefinedTables = false;
#endif
#ifndef FQ_REPLICATED_TABLES
#define FQ_REPLICATED_TABLES kMostReplicated
#endif
#ifndef FQ_NEEDED_TABLES
#define FQ_NEEDED_TABLES 0x3F
#endif
inline constexpr AttendTables kTables{FQ_REPLICATED_TABLES, kRefinedTables, FQ_NEEDED_TABLES};

// What a lane adds to the address of a lookup in a replicated table: its column there, in byte 0
// for entries of 4 bytes, in byte 2 for those of 8. Byte 1 is 0.
using LaneColumns = uint32_t;
FQ_DEVICE LaneColumns ColumnsOfLane() { return threadIdx.x % 32 * 4 | threadIdx.x % 16 * 8 << 16; }
// The same out of a shuffle: it stays in its register, where the compiler would otherwise work it
// out again for each page.
FQ_DEVICE LaneColumns KeptColumnsOfLane() {
  return __shfl_sync(~0u, ColumnsOfLane(), static_cast<int>(threadIdx.x & 31));
}

// Byte `kByte` of `codes` times 256 plus the column of entries of kSize bytes.
template <int kByte, int kSize>
FQ_DEVICE uint32_t RowAddress(uint32_t codes, LaneColumns lane) {
  return Permute(codes, lane, (kSize == 4 ? 0x5504u : 0x5506u) | kByte << 4);
}
// Byte `kByte` of `codes` times the size of an entry of a plain table.
template <int kByte, int kSize>
FQ_DEVICE uint32_t EntryAddress(uint32_t codes) {
  return DotBytes(codes, static_cast<uint32_t>(kSize) << (8 * kByte));
}

// Entry of byte `kByte` of `codes`, of classes 4 and 2.
template <int kSide, bool kRefinement, int kByte, int kBits>
FQ_DEVICE uint32_t WordEntry(uint32_t codes, LaneColumns lane) {
  constexpr int kReplicated = kTables.Replicated(kRefinement, kBits);
  if constexpr (kReplicated >= 0) {
    return LoadShared<kSharedBase + kReplicated + 128 * kSide>(RowAddress<kByte, 4>(codes, lane));
  } else {
    constexpr int kPlain = kTables.Plain(kSide, kRefinement, kBits);
    return LoadShared<kSharedBase + kPlain>(EntryAddress<kByte, 4>(codes));
  }
}
template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint32_t EntryOfClass4(uint32_t codes, LaneColumns lane) {
  return WordEntry<kSide, kRefinement, kByte, 4>(codes, lane);
}
template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint32_t EntryOfClass2(uint32_t codes, LaneColumns lane) {
  return WordEntry<kSide, kRefinement, kByte, 2>(codes, lane);
}
template <int kSide, bool kRefinement, int kByte>
FQ_DEVICE uint2 EntryOfClass1(uint32_t codes, LaneColumns lane) {
  constexpr int kReplicated = kTables.Replicated(kRefinement, 1);
  if constexpr (kReplicated >= 0) {
    return LoadShared2<kSharedBase + kReplicated + 128 * kSide>(RowAddress<kByte, 8>(codes, lane));
  } else {
    constexpr int kPlain = kTables.Plain(kSide, kRefinement, 1);
    return LoadShared2<kSharedBase + kPlain>(EntryAddress<kByte, 8>(codes));
  }
}

// Moves the tables of a record to shared memory, loads first, so that other work fits in between.
template <int kThreads>
class TableCopy {
 public:
  FQ_DEVICE void Load(const std::byte* record) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Row(i);
      if (row >= 512) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint32_t* lookups = reinterpret_cast<const uint32_t*>(record) + part * kLookupWords;
        rows_[i][part].four = lookups[kClass4Words + row];
        rows_[i][part].two = lookups[kClass2Words + row];
        rows_[i][part].one = reinterpret_cast<const uint2*>(lookups + kClass1Words)[row];
      }
    }
  }

  FQ_DEVICE void Store(std::byte* shared) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Row(i);
      if (row >= 512) continue;
      StaticFor<0, kParts>([&](auto part) {
        constexpr int kPart = decltype(part)::value;
        const Entries& entries = rows_[i][kPart];
        StoreEntry<kPart, 4>(shared, row, make_uint2(entries.four, entries.four));
        StoreEntry<kPart, 2>(shared, row, make_uint2(entries.two, entries.two));
        StoreEntry<kPart, 1>(shared, row, entries.one);
      });
    }
  }

 private:
  static constexpr int kRows = (512 + kThreads - 1) / kThreads, kParts = kRefinedTables ? 2 : 1;
  struct Entries {
    uint32_t four, two;
    uint2 one;
  };
  FQ_DEVICE static int Row(int i) { return static_cast<int>(threadIdx.x) + i * kThreads; }

  // Row = 2 * byte + side, as in the record. In a replicated table each thread starts at another
  // column than its neighbours, so that the stores of a quarter warp go to different banks.
  template <int kPart, int kBits>
  FQ_DEVICE static void StoreEntry(std::byte* shared, int row, uint2 entry) {
    constexpr int kReplicated = kTables.Replicated(kPart, kBits);
    if constexpr (!kTables.Needed(kPart, kBits)) {
      return;
    } else if constexpr (kReplicated >= 0) {
      const uint4 twice = make_uint4(entry.x, entry.y, entry.x, entry.y);
      for (int k = 0; k < 8; ++k) {
        const int at = kReplicated + row * 128 + ((k + row) & 7) * 16;
        *reinterpret_cast<uint4*>(shared + at) = twice;
      }
    } else {
      std::byte* table =
          shared + (row & 1 ? kTables.Plain(1, kPart, kBits) : kTables.Plain(0, kPart, kBits));
      if constexpr (kBits == 1) {
        *reinterpret_cast<uint2*>(table + 8 * (row >> 1)) = entry;
      } else {
        *reinterpret_cast<uint32_t*>(table + 4 * (row >> 1)) = entry.x;
      }
    }
  }

  Entries rows_[kRows][kParts];
};

}  // namespace fq
