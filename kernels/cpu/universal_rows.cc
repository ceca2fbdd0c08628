#include "kernels/cpu/universal_rows.h"

#include <cmath>
#include <cstring>

#include "kernels/codec/quantise.h"
#include "kernels/codec/universal.h"
#include "kernels/cpu/group_order.h"

namespace fq {
namespace {

// Orthonormal Walsh-Hadamard transform over the channels of every block, in place.
void Hadamard(int head_size, float* x) {
  const int block = HadamardBlock(head_size);
  const float orthonormal = 1.0f / std::sqrt(static_cast<float>(block));
  for (int half = 1; half < block; half *= 2) {
    const float scale = 2 * half == block ? orthonormal : 1.0f;
    for (int c = 0; c < head_size; ++c) {
      if (c & half) continue;
      float* a = x + c * kPageTokens;
      float* b = a + half * kPageTokens;
      for (int t = 0; t < kPageTokens; ++t) {
        const Butterfly butterfly = HadamardButterfly(a[t], b[t], scale);
        a[t] = butterfly.sum;
        b[t] = butterfly.difference;
      }
    }
  }
}

// Stores the norms of the rows and divides the rows by them.
void Normalise(Side side, int head_size, float* x, std::byte* page) {
  float sums[kPageTokens] = {}, norms[kPageTokens];
  for (int c = 0; c < head_size; ++c) {
    float* row = x + c * kPageTokens;
    for (int t = 0; t < kPageTokens; ++t) {
      row[t] = Sanitised(row[t]);
      sums[t] += row[t] * row[t];
    }
  }
  for (int t = 0; t < kPageTokens; ++t) {
    const uint16_t norm = UniversalNorm(sums[t], head_size);
    std::memcpy(page + UniversalNormOffset(side, t, head_size), &norm, sizeof(norm));
    norms[t] = HalfToFloat(norm);
  }
  for (int c = 0; c < head_size; ++c) {
    for (int t = 0; t < kPageTokens; ++t) x[c * kPageTokens + t] /= norms[t];
  }
}

size_t CodesOffset(Side side, int head_size) {
  return side == Side::kKey ? 0 : UniversalCodeBytes(head_size);
}

}  // namespace

void EncodeUniversalRows(Side side, int head_size, float* x, std::byte* page) {
  Normalise(side, head_size, x, page);
  Hadamard(head_size, x);
  const GroupOrder& order = kGroupOrder[static_cast<int>(side)];
  std::byte* codes = page + CodesOffset(side, head_size);
  for (int group = 0; group < head_size / kGroupChannels; ++group) {
    uint8_t levels[kGroupValues];
    for (int i = 0; i < kGroupValues; ++i) levels[i] = static_cast<uint8_t>(NearestLevel(x[i]));
    for (int b = 0; b < kGroupPairs; ++b) {
      codes[b] = static_cast<std::byte>(levels[order[2 * b]] | levels[order[2 * b + 1]] << 4);
    }
    x += kGroupValues;
    codes += kGroupPairs;
  }
}

void DecodeUniversalLevels(Side side, int head_size, const std::byte* page, float* v) {
  const GroupOrder& order = kGroupOrder[static_cast<int>(side)];
  const std::byte* codes = page + CodesOffset(side, head_size);
  static constexpr LevelTable kTable = LloydMaxLevels();
  for (int group = 0; group < head_size / kGroupChannels; ++group) {
    for (int b = 0; b < kGroupPairs; ++b) {
      const int code = static_cast<int>(codes[b]);
      v[order[2 * b]] = kTable.level[code & 15];
      v[order[2 * b + 1]] = kTable.level[code >> 4];
    }
    v += kGroupValues;
    codes += kGroupPairs;
  }
}

void InverseUniversalRows(Side side, int head_size, const std::byte* page, float* v) {
  Hadamard(head_size, v);
  float norms[kPageTokens];
  for (int t = 0; t < kPageTokens; ++t) {
    uint16_t norm;
    std::memcpy(&norm, page + UniversalNormOffset(side, t, head_size), sizeof(norm));
    norms[t] = HalfToFloat(norm);
  }
  for (int c = 0; c < head_size; ++c) {
    for (int t = 0; t < kPageTokens; ++t) v[c * kPageTokens + t] *= norms[t];
  }
}

}  // namespace fq
