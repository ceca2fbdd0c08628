// Where the values of a page lie in its bytes (FORMAT.md sections 1, 2, 5, 6). The one place that
// knows the layout; pure functions of integers for CPU and CUDA, callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace fq {

inline constexpr int kPageTokens = 64;    // rows of a page
inline constexpr int kGroupChannels = 8;  // components of a channel group
inline constexpr int kGroupValues = kPageTokens * kGroupChannels;
inline constexpr int kGroupPairs = kGroupValues / 2;
inline constexpr int kMaxHeadSize = 256;
inline constexpr int kMaxGroups = kMaxHeadSize / kGroupChannels;
inline constexpr int kTableEntries = 256;
inline constexpr int kSinkRows = 16;  // rows of the sink record

// K or V; their groups put tokens and components in different places.
enum class Side : uint8_t { kKey = 0, kValue = 1 };

FQ_HD constexpr bool IsHeadSize(int head_size) {
  return head_size == 64 || head_size == 96 || head_size == 128 || head_size == 256;
}

FQ_HD constexpr bool IsClass(int bits) {
  return bits == 0 || bits == 1 || bits == 2 || bits == 4 || bits == 8;
}

// Bytes of one channel group of a class.
FQ_HD constexpr int GroupBytes(int bits) { return kPageTokens * bits; }

// Values that one byte of a class holds (class 8, 4, 2 or 1).
FQ_HD constexpr int ValuesPerByte(int bits) { return 8 / bits; }

// A value of a channel group: its token in the page and its component in the group.
struct GroupPosition {
  int token;    // 0..63
  int channel;  // 0..7
};

// Position of value `sequence` (0..511) of a group. Value `v` of byte `b` of class `bits` has
// sequence = b * ValuesPerByte(bits) + v, which is 16 lane + 4 j + 2 r + e for every class.
FQ_HD constexpr GroupPosition PositionOf(Side side, int sequence) {
  const int lane = sequence >> 4, tile = (sequence >> 2) & 3, r = (sequence >> 1) & 1,
            e = sequence & 1;
  const int g = lane >> 2, t = lane & 3;
  return side == Side::kKey ? GroupPosition{16 * tile + g + 8 * r, 2 * t + e}
                            : GroupPosition{16 * tile + 8 * r + 2 * t + e, g};
}

// Sink record: offsets from its start, and its size.
FQ_HD constexpr size_t SinkRowOffset(Side side, int row, int head_size) {
  return static_cast<size_t>(side == Side::kKey ? row : kSinkRows + row) * head_size;
}
FQ_HD constexpr size_t SinkScaleOffset(Side side, int row, int head_size) {
  return 2 * static_cast<size_t>(kSinkRows) * head_size +
         sizeof(float) * (side == Side::kKey ? row : kSinkRows + row);
}
FQ_HD constexpr size_t SinkRecordBytes(int head_size) {
  return 2 * static_cast<size_t>(kSinkRows) * (head_size + sizeof(float));
}

// Universal page: bytes of the codes of one side, offset of a row's norm, and the size without sink
// record.
FQ_HD constexpr size_t UniversalCodeBytes(int head_size) {
  return static_cast<size_t>(kPageTokens) * head_size / 2;
}
FQ_HD constexpr size_t UniversalNormOffset(Side side, int row, int head_size) {
  return 2 * UniversalCodeBytes(head_size) +
         sizeof(uint16_t) * (side == Side::kKey ? row : kPageTokens + row);
}
FQ_HD constexpr size_t UniversalPageBytes(int head_size) {
  return UniversalNormOffset(Side::kValue, kPageTokens, head_size);
}

// Exact page: offset of a row, and the size.
FQ_HD constexpr size_t ExactRowOffset(Side side, int row, int head_size, int element_bytes) {
  return static_cast<size_t>(side == Side::kKey ? row : kPageTokens + row) * head_size *
         element_bytes;
}
FQ_HD constexpr size_t ExactPageBytes(int head_size, int element_bytes) {
  return ExactRowOffset(Side::kValue, kPageTokens, head_size, element_bytes);
}

static_assert(kPageTokens % 16 == 0, "tiles of 16 tokens");
static_assert(GroupBytes(8) == kGroupValues && GroupBytes(4) == kGroupPairs);
static_assert(SinkRecordBytes(64) == 32 * 64 + 128, "FORMAT.md section 5");
static_assert(UniversalPageBytes(64) == 64 * 64 + 256, "FORMAT.md section 6");
static_assert(PositionOf(Side::kKey, 511).token == 63 && PositionOf(Side::kValue, 511).token == 63);

}  // namespace fq
