// The first 128 bytes of a slab extent (FORMAT.md section 4), for its writer and its reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fq {

inline constexpr uint32_t kSlabMagic = 0x31535146;  // "FQS1"
inline constexpr uint16_t kSlabVersion = 1;
inline constexpr uint8_t kSlabFlagSink = 1;
inline constexpr size_t kSlabAlignment = 64;  // of the first page

struct SlabHeader {
  uint32_t magic;
  uint16_t version;
  uint8_t kind;   // PageKind
  uint8_t flags;  // kSlabFlagSink; others 0
  uint16_t layer_begin, layer_end, head_begin, head_end;
  uint16_t tokens;
  uint16_t head_size;
  uint8_t dtype;  // DType
  uint8_t zero0[3];
  uint32_t page_count;
  uint32_t block_index;
  uint64_t payload_bytes;  // of the pages
  uint64_t zero1;
  uint8_t block_key[32];
  uint8_t codec_set_id[32];
  uint64_t zero2;
  uint64_t checksum;  // of the bytes before it
};

static_assert(sizeof(SlabHeader) == 128 && std::is_trivially_copyable_v<SlabHeader>);
static_assert(offsetof(SlabHeader, layer_begin) == 8 && offsetof(SlabHeader, tokens) == 16);
static_assert(offsetof(SlabHeader, dtype) == 20 && offsetof(SlabHeader, page_count) == 24);
static_assert(offsetof(SlabHeader, payload_bytes) == 32 && offsetof(SlabHeader, block_key) == 48);
static_assert(offsetof(SlabHeader, codec_set_id) == 80 && offsetof(SlabHeader, checksum) == 120);

// Offset of the first page: header and page checksums, rounded up.
constexpr size_t SlabPagesOffset(size_t page_count) {
  return (sizeof(SlabHeader) + sizeof(uint64_t) * page_count + kSlabAlignment - 1) /
         kSlabAlignment * kSlabAlignment;
}

}  // namespace fq
