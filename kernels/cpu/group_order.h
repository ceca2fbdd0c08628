// Order of the values of a channel group in its bytes, as tables for loops (page_layout.h has the
// formula).
#pragma once

#include <array>
#include <cstdint>

#include "kernels/codec/page_layout.h"

namespace fq {

// Where value `sequence` of a group lies in its [8 components][64 tokens] floats.
using GroupOrder = std::array<uint16_t, kGroupValues>;

constexpr GroupOrder MakeGroupOrder(Side side) {
  GroupOrder order{};
  for (int i = 0; i < kGroupValues; ++i) {
    const GroupPosition position = PositionOf(side, i);
    order[i] = static_cast<uint16_t>(position.channel * kPageTokens + position.token);
  }
  return order;
}
inline constexpr GroupOrder kGroupOrder[2] = {MakeGroupOrder(Side::kKey),
                                              MakeGroupOrder(Side::kValue)};

// Where pair `i` (values 2i and 2i + 1 of the sequence) goes in a buffer of u32. A pair of K is two
// components of one token: the buffer is [4 pairs of components][64 tokens]. A pair of V is two
// tokens: [8 components][32 token pairs].
using PairOrder = std::array<uint8_t, kGroupPairs>;

constexpr PairOrder MakePairOrder(Side side) {
  PairOrder order{};
  for (int i = 0; i < kGroupPairs; ++i) {
    const GroupPosition position = PositionOf(side, 2 * i);
    order[i] = static_cast<uint8_t>(side == Side::kKey
                                        ? position.channel / 2 * kPageTokens + position.token
                                        : (position.channel * kPageTokens + position.token) / 2);
  }
  return order;
}
inline constexpr PairOrder kPairOrder[2] = {MakePairOrder(Side::kKey), MakePairOrder(Side::kValue)};

}  // namespace fq
