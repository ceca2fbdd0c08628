// Codes of all channel groups of one side of a page: floats to bytes and back (FORMAT.md section
// 2). Pure functions, callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/codec/page_layout.h"
#include "kernels/codec_set.h"
#include "kernels/cpu/primitives.h"

namespace fq {

// What the groups of one side hold in one part (base or refinement).
struct GroupPlan {
  Side side = Side::kKey;
  const std::vector<uint8_t>* classes = nullptr;  // [head_size / 8] bits
  const HeadCodec::Tables* tables = nullptr;
};

// Groups with any bits.
GroupMask CodedGroups(const std::vector<uint8_t>& classes);

// Codes u ([head_size][64]) into `codes` [CodeBytes of the classes]. Groups of class 0 are not
// read.
void EncodeGroups(const Primitives& primitives, const GroupPlan& plan, const float* u,
                  std::byte* codes);

// Values in the coded domain, v [head_size][64]; groups of class 0 become 0.
void DecodeGroups(const Primitives& primitives, const GroupPlan& plan, const std::byte* codes,
                  float* v);

}  // namespace fq
