// Tables of a measured codec set in a made-up one of any shape: what they hold decides how fast a
// GPU looks them up. For benchmarks.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels/codec_set.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {

// Deviation of what a class leaves of a unit Gaussian, as calibrated sets have it.
inline float DeviationOf(int bits) {
  return bits == 8 ? 0.0102f : bits == 4 ? 0.0975f : bits == 2 ? 0.328f : bits == 1 ? 0.584f : 1.0f;
}

// Puts the tables of `from` that a head uses, in turns, in all places of the file of `set`, and
// deviations that fit its classes, and seals it.
inline void TakeTables(const CodecSet& from, const CodecSet& set, std::vector<std::byte>* file) {
  std::vector<const uint32_t*> tables[3];  // of class 4, 2, 1
  for (int i = 0; i < from.layers() * from.kv_heads(); ++i) {
    const int layer = i / from.kv_heads(), head = i % from.kv_heads();
    for (const HeadCodec* codec : {&from.k(layer, head), &from.v(layer, head)}) {
      const uint32_t* own[3] = {codec->base.class4, codec->base.class2, codec->base.class1};
      for (int c = 0; c < 3; ++c) {
        if (own[c][0] != own[c][255]) tables[c].push_back(own[c]);
      }
    }
  }
  const size_t d = static_cast<size_t>(set.head_size());
  const size_t before = 4 * (3 * d + 2 * d * d), side_bytes = before + 2 * 4096;
  const size_t sides = size_t(2) * set.layers() * set.kv_heads();
  const size_t arrays = file->size() - sides * side_bytes;
  for (size_t i = 0; i < sides * d; ++i) {
    const size_t side = i / d, c = i % d;
    const CodecProfile& profile = set.profile(static_cast<int>(side / 2 / set.kv_heads()),
                                              static_cast<int>(side / 2 % set.kv_heads()));
    const float sd = DeviationOf((side % 2 == 0 ? profile.k : profile.v)[c / 8]);
    std::memcpy(file->data() + arrays + side * side_bytes + before - 4 * (d - c), &sd, 4);
  }
  for (size_t i = 0; i < 2 * sides; ++i) {
    std::byte* to = file->data() + arrays + i / 2 * side_bytes + before + i % 2 * 4096;
    for (int c = 0; c < 3; ++c) {
      std::memcpy(to + 1024 * c, tables[c][i % tables[c].size()], c == 2 ? 2048 : 1024);
    }
  }
  SealCodecSet(file);
}

}  // namespace fq
