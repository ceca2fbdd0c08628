// Nearest entries of class 1, eight values a byte, by tensor cores: candidate lists are too long in
// eight dimensions. Distances are rounded to FP16, so entries whose distances differ by less than
// 2^-9 of them may be taken for one another.
#pragma once

#include <cstdint>

#include "kernels/cuda/nearest_entry.cuh"
#include "kernels/cuda/warp.cuh"

namespace fq {

// What a warp needs in shared memory to pass values between its lanes: B fragments of each byte
// (nearest_tables.h says what is in them).
struct OctetScratch {
  uint4 values[2][32];  // [half of the columns][byte]
};

inline constexpr int kOctetTiles = kTableEntries / 16;
// Tiles whose nearest entry is looked for together; all of them are looked at again.
inline constexpr int kTilesAtOnce = 4;

// Puts the eight values of the lane's byte where the warp finds them.
__device__ inline void ShareOctet(const uint32_t* half, int lane, OctetScratch* scratch) {
  constexpr uint32_t kOnes = 0x3C003C00u;
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = WidenHalves(half[i]);
    square = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, square));
  }
  square *= 0.5f;
  const uint32_t high = PackHalves(square, 0.0f);
  const uint32_t square_terms = PackHalves(square, square - WidenHalves(high).x);
  const int row = 8 * (lane & 3) + (lane >> 2);  // bytes of lanes 4 g + s: tile s, column g
  scratch->values[0][row] = make_uint4(half[0], half[1], half[2], half[3]);
  scratch->values[1][row] = make_uint4(kOnes, square_terms, 0, 0);
  WarpBarrier();
}

// A lane's nearest so far of eight bytes: the distance in FP16, then 8 group + g, where group
// counts kTilesAtOnce tiles and 4 g + t is the lane.
struct OctetKeys {
  uint32_t key[8];  // [2 * tile of bytes + parity of the column]
};

// Of the entries g and g + 8 of every tile, for columns 2 t and 2 t + 1 of each tile of bytes.
__device__ inline OctetKeys MeasureOctets(const SearchTables& tables, int lane,
                                          const OctetScratch& scratch) {
  uint32_t bytes[2][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto* words = reinterpret_cast<const uint32_t*>(scratch.values[i >> 2]);
    bytes[i >> 2][i & 3] = words[4 * (8 * (i & 3) + (lane >> 2)) + (lane & 3)];
  }
  OctetKeys best;
#pragma unroll
  for (uint32_t& key : best.key) key = ~0u;
#pragma unroll 1
  for (int group = 0; group < kOctetTiles / kTilesAtOnce; ++group) {
    uint32_t lowest[4] = {~0u, ~0u, ~0u, ~0u};
#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i) {
      const uint4 rows =
          *reinterpret_cast<const uint4*>(tables.octet_rows[kTilesAtOnce * group + i][lane]);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        uint32_t distances[2];
        MultiplyToHalves(distances, rows, bytes[0][tile], bytes[1][tile]);
        lowest[tile] = LowerHalves(lowest[tile], distances[0], distances[1]);
      }
    }
    const uint32_t tag = static_cast<uint32_t>(8 * group + (lane >> 2));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t key = PickBytes(lowest[i >> 1], tag, i % 2 == 0 ? 0x1054u : 0x3254u);
      best.key[i] = key < best.key[i] ? key : best.key[i];
    }
  }
  return best;
}

// The lanes of a column compare and split their eight bytes, and give each to its lane.
__device__ inline uint32_t CombineOctets(int lane, OctetKeys keys) {
  const int g = lane >> 2;
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = (g & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const uint32_t own = upper ? keys.key[i + half] : keys.key[i];
      const uint32_t other = FromLaneXor(upper ? keys.key[i] : keys.key[i + half], 4 * half);
      keys.key[i] = own < other ? own : other;
    }
  }
  // Lane 4 g + t now has column 2 t + (g & 1) of tile g >> 1.
  const int column = lane >> 2, tile = lane & 3;
  return FromLane(keys.key[0], 4 * (2 * tile + (column & 1)) + (column >> 1));
}

// The entry nearest to the eight values of the lane's byte; for a whole warp.
__device__ inline uint32_t NearestOctet(const SearchTables& tables, const uint32_t* half, int lane,
                                        OctetScratch* scratch) {
  ShareOctet(half, lane, scratch);
  const uint32_t key = CombineOctets(lane, MeasureOctets(tables, lane, *scratch));
  WarpBarrier();
  const uint32_t first = (key >> 3 & 31u) * (16 * kTilesAtOnce) + (key & 7u);
  uint32_t best = ~0u;
#pragma unroll
  for (uint32_t i = 0; i < 2 * kTilesAtOnce; ++i) {
    const uint4 entry = *reinterpret_cast<const uint4*>(tables.class1[first + 8 * i]);
    const uint32_t words[4] = {entry.x, entry.y, entry.z, entry.w};
    const uint32_t other = PickBytes(HalfDistance<4>(half, words), first + 8 * i, 0x1054u);
    best = other < best ? other : best;
  }
  return best & 255u;
}

}  // namespace fq
