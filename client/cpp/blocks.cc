#include "client/cpp/blocks.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace fq::client {
namespace {

template <typename Enum, size_t kCount>
using Names = std::array<std::pair<Enum, absl::string_view>, kCount>;

constexpr Names<DType, 3> kDTypes = {
    {{DType::kF16, "f16"}, {DType::kBf16, "bf16"}, {DType::kF32, "f32"}}};
constexpr Names<Profile, 4> kProfiles = {{{Profile::kExact, "exact"},
                                          {Profile::kNearLossless, "near-lossless"},
                                          {Profile::kCompact, "compact"},
                                          {Profile::kUniversal, "universal"}}};
constexpr Names<BlockStatus, 6> kStatuses = {{{BlockStatus::kOk, "ok"},
                                              {BlockStatus::kExists, "exists"},
                                              {BlockStatus::kMiss, "miss"},
                                              {BlockStatus::kFull, "full"},
                                              {BlockStatus::kBelowFloor, "below-floor"},
                                              {BlockStatus::kRefused, "refused"}}};

template <typename Enum, size_t kCount>
absl::string_view NameIn(const Names<Enum, kCount>& names, Enum value) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  return "unspecified";
}

template <typename Enum, size_t kCount>
absl::StatusOr<Enum> ValueIn(const Names<Enum, kCount>& names, absl::string_view wanted) {
  std::vector<absl::string_view> all;
  for (const auto& [value, name] : names) {
    if (name == wanted) return value;
    all.push_back(name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", wanted, "' is none of ", absl::StrJoin(all, ", ")));
}

}  // namespace

absl::string_view Name(DType dtype) { return NameIn(kDTypes, dtype); }
absl::string_view Name(Profile profile) { return NameIn(kProfiles, profile); }
absl::string_view Name(BlockStatus status) { return NameIn(kStatuses, status); }
absl::StatusOr<DType> DTypeOf(absl::string_view name) { return ValueIn(kDTypes, name); }
absl::StatusOr<Profile> ProfileOf(absl::string_view name) { return ValueIn(kProfiles, name); }

SlabRange WholeModel(const Descriptor& descriptor) {
  return {0, descriptor.layers, 0, descriptor.kv_heads};
}

PageLayout DenseLayout(const Descriptor& descriptor, const SlabRange& range) {
  const uint64_t element_bytes = ElementBytes(descriptor.dtype);
  const uint64_t row_bytes = element_bytes * descriptor.head_size;
  const uint64_t page_half_bytes = kBlockTokens * row_bytes;
  PageLayout layout;
  layout.head_stride = 2 * page_half_bytes;
  layout.layer_stride = (range.head_end - range.head_begin) * layout.head_stride;
  layout.v_offset = page_half_bytes;
  layout.k_token_stride = layout.v_token_stride = row_bytes;
  layout.k_channel_stride = layout.v_channel_stride = element_bytes;
  return layout;
}

uint64_t DenseBlockBytes(const Descriptor& descriptor, const SlabRange& range) {
  return (range.layer_end - range.layer_begin) * DenseLayout(descriptor, range).layer_stride;
}

std::vector<BlockPlace> DensePlaces(uint64_t begin_bytes, uint64_t block_bytes, size_t count) {
  std::vector<BlockPlace> places(count);
  for (size_t i = 0; i < count; ++i) places[i].chunk_offsets = {begin_bytes + i * block_bytes};
  return places;
}

}  // namespace fq::client
