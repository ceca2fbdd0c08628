// Nearest-entry search of the encoder. The sums have one order, so that scalar code and SIMD lanes
// find the same entry: score = fma chain over the values, starting at -|entry|^2 / 2; the highest
// score wins, ties go to the lowest index. Pure functions, callable from any thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/codec/page_layout.h"

namespace fq {

// A codebook in the layout of the search: values of the entries as columns.
struct SearchTable {
  alignas(64) float value[8][kTableEntries];  // [ValuesPerByte][256]; rows beyond are unused
  alignas(64) float start[kTableEntries];     // -|entry|^2 / 2
};

FQ_HD inline float NearestStart(const SearchTable& table, int values, int entry) {
  float norm = 0.0f;
  for (int i = 0; i < values; ++i) norm = fmaf(table.value[i][entry], table.value[i][entry], norm);
  return -0.5f * norm;
}

// Index of the entry nearest to x[0], x[stride], .. x[(values - 1) * stride]. NaN in x gives entry
// 0.
FQ_HD inline uint8_t NearestEntry(const SearchTable& table, int values, const float* x,
                                  int stride) {
  int best = 0;
  float best_score = -INFINITY;
  for (int entry = 0; entry < kTableEntries; ++entry) {
    float score = table.start[entry];
    for (int i = 0; i < values; ++i) score = fmaf(x[i * stride], table.value[i][entry], score);
    if (score > best_score) {
      best_score = score;
      best = entry;
    }
  }
  return static_cast<uint8_t>(best);
}

}  // namespace fq
