// The words of a FlashQuant client as plain values: profiles, block statuses, ranges, and how pages
// lie in memory. No wire, no gRPC. Values as in proto/flashquant/v1/kv_cache.proto. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fq::client {

inline constexpr uint32_t kBlockTokens = 64;

// Numbers are those of the wire.
enum class DType : uint8_t { kF16 = 1, kBf16 = 2, kF32 = 3 };
enum class Profile : uint8_t {
  kUnspecified = 0,
  kExact = 1,
  kNearLossless = 2,
  kCompact = 3,
  kUniversal = 4,
};
enum class BlockStatus : uint8_t {
  kUnspecified = 0,
  kOk = 1,
  kExists = 2,
  kMiss = 3,
  kFull = 4,
  kBelowFloor = 5,
  kRefused = 6,
};

absl::string_view Name(DType dtype);         // "bf16"
absl::string_view Name(Profile profile);     // "near-lossless"
absl::string_view Name(BlockStatus status);  // "below-floor"

// InvalidArgument lists the names there are.
absl::StatusOr<DType> DTypeOf(absl::string_view name);
absl::StatusOr<Profile> ProfileOf(absl::string_view name);

constexpr uint32_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// Everything that must agree before two engines may share pages (proto NamespaceDescriptor).
struct Descriptor {
  std::string model;
  std::string weights_digest;
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_size = 0;
  DType dtype = DType::kBf16;
  std::string rope;
  std::string codec_set_id;  // 32 bytes or empty
  std::map<std::string, std::string> extra;
};

// Layers and kv heads of a session; ends exclusive.
struct SlabRange {
  uint32_t layer_begin = 0;
  uint32_t layer_end = 0;
  uint32_t head_begin = 0;
  uint32_t head_end = 0;
};

// All layers and heads of a model.
SlabRange WholeModel(const Descriptor& descriptor);

// All in bytes but the first; see proto PageLayout.
struct PageLayout {
  uint32_t tokens_per_chunk = kBlockTokens;
  uint64_t layer_stride = 0, head_stride = 0;
  uint64_t k_offset = 0, k_token_stride = 0, k_channel_stride = 0;
  uint64_t v_offset = 0, v_token_stride = 0, v_channel_stride = 0;
};

// Where one block lies: byte offsets of its chunks in the segment or payload.
struct BlockPlace {
  std::vector<uint64_t> chunk_offsets;
  uint32_t first_token = 0;
};

// [layer][head][K|V][64][head_size], one chunk per block: the order of inline loads.
PageLayout DenseLayout(const Descriptor& descriptor, const SlabRange& range);
uint64_t DenseBlockBytes(const Descriptor& descriptor, const SlabRange& range);

// `count` dense blocks one behind the other from `begin_bytes` on.
std::vector<BlockPlace> DensePlaces(uint64_t begin_bytes, uint64_t block_bytes, size_t count);

}  // namespace fq::client
