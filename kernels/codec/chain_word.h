// Table entries of the classes 4, 2 and 1: words that hold overlapping FP16 values (FORMAT.md
// section 2, Tables). Pure functions, callable from any thread.
#pragma once

#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/codec/float_convert.h"

namespace fq {

// The two FP16 of a chain word for `r` 0 or 1 as one u32: e = 0 in the low half, e = 1 in the high
// half. Shifting by a byte is the chain: r = 1 reads (b0:00) and (b2:b1).
FQ_HD constexpr uint32_t ChainPair(uint32_t word, int r) { return r == 0 ? word : word << 8; }

FQ_HD constexpr uint16_t PairHalf(uint32_t pair, int e) {
  return static_cast<uint16_t>(e == 0 ? pair & 0xFFFFu : pair >> 16);
}

// u32 words of one table entry of a class (4, 2 or 1).
FQ_HD constexpr int WordsPerEntry(int bits) { return bits == 1 ? 2 : 1; }

// FP16 bits of value `value` (0 .. ValuesPerByte - 1) of the table entry that starts at `words`.
FQ_HD inline uint16_t EntryHalf(const uint32_t* words, int bits, int value) {
  if (bits == 4) return PairHalf(words[0], value);
  return PairHalf(ChainPair(words[value >> 2], (value >> 1) & 1), value & 1);
}

FQ_HD inline float EntryValue(const uint32_t* words, int bits, int value) {
  return HalfToFloat(EntryHalf(words, bits, value));
}

}  // namespace fq
