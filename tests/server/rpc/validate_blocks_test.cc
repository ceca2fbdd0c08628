#include "server/rpc/validate_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

using Code = absl::StatusCode;
constexpr uint64_t kMax = UINT64_MAX;
constexpr size_t kBlocks = 2, kLeased = 4;

SlabShape Shape() {
  SlabShape shape;
  shape.layer_end = kTestLayers;
  shape.head_end = kTestHeads;
  shape.head_size = kTestHeadSize;
  shape.dtype = DType::kBF16;
  return shape;
}

RequestLimits Limits() {
  RequestLimits limits;
  limits.max_blocks_per_call = 8;
  limits.max_inline_bytes = 3 * kTestBlockBytes;
  return limits;
}

template <typename Request>
struct BadField {
  std::string field, value;
  std::function<void(Request&)> apply;
  Code code = Code::kInvalidArgument;
};

template <typename Request>
void ExpectAllRefused(const std::vector<BadField<Request>>& table, const Request& good,
                      const std::function<absl::Status(const Request&)>& check) {
  ASSERT_TRUE(check(good).ok()) << check(good);
  for (const auto& bad : table) {
    Request request = good;
    bad.apply(request);
    const absl::Status status = check(request);
    EXPECT_EQ(status.code(), bad.code) << bad.field << " " << bad.value << ": " << status;
    EXPECT_NE(status.message().find(bad.field), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(bad.value), absl::string_view::npos) << status;
  }
}

absl::Status CheckStoreWithPages(const wire::StoreRequest& request, uint64_t memory_bytes) {
  const absl::Status status = CheckStore(request, Limits());
  if (!status.ok()) return status;
  return CheckPages(request.pages(), request.keys().size() / 32, Shape(), memory_bytes);
}

wire::StoreRequest GoodStore() {
  wire::StoreRequest request;
  request.set_profile(wire::PROFILE_EXACT);
  request.set_first_block_index(2);
  request.set_keys(std::string(kBlocks * 32, 'k'));
  *request.mutable_pages() = TestPlaces(kBlocks, 0);
  request.set_payload(std::string(kBlocks * kTestBlockBytes, 'p'));
  return request;
}

wire::PageLayout& Layout(wire::StoreRequest& r) { return *r.mutable_pages()->mutable_layout(); }
wire::BlockPlace& Place(wire::StoreRequest& r) { return *r.mutable_pages()->mutable_places(1); }

TEST(ValidateStore, EachBadField_IsNamedWithItsValue) {
  using R = wire::StoreRequest;
  const std::vector<BadField<R>> table = {
      {"profile", "0", [](R& r) { r.set_profile(wire::PROFILE_UNSPECIFIED); }},
      {"profile", "5", [](R& r) { r.set_profile(static_cast<wire::Profile>(5)); }},
      {"profile", "-1", [](R& r) { r.set_profile(static_cast<wire::Profile>(-1)); }},
      {"keys", "0", [](R& r) { r.clear_keys(); }},
      {"keys", "63", [](R& r) { r.mutable_keys()->pop_back(); }},
      {"keys", "9", [](R& r) { r.set_keys(std::string(9 * 32, 'k')); }, Code::kResourceExhausted},
      {"first_block_index", "4294967295", [](R& r) { r.set_first_block_index(UINT32_MAX); }},
      {"first_block_index", "4294967294", [](R& r) { r.set_first_block_index(UINT32_MAX - 1); }},
      {"preceding_keys", "31", [](R& r) { r.set_preceding_keys(std::string(31, 'p')); }},
      {"preceding_keys", "96", [](R& r) { r.set_preceding_keys(std::string(96, 'p')); }},
      {"preceding_keys", "2",
       [](R& r) {
         r.set_preceding_keys(std::string(64, 'p'));
         r.set_first_block_index(1);
       }},
      {"pages", "required", [](R& r) { r.clear_pages(); }},
      {"pages.layout", "required", [](R& r) { r.mutable_pages()->clear_layout(); }},
      {"pages.places", "0", [](R& r) { r.mutable_pages()->clear_places(); }},
      {"pages.places", "3", [](R& r) { r.mutable_pages()->add_places(); }},
      {"payload", "16", [](R& r) { r.mutable_pages()->set_segment_id(16); }},
      {"payload", std::to_string(3 * kTestBlockBytes + 1),
       [](R& r) { r.set_payload(std::string(3 * kTestBlockBytes + 1, 'p')); },
       Code::kResourceExhausted},
      {"places[0].chunk_offsets[0]", "the memory has 0", [](R& r) { r.clear_payload(); }},
      {"tokens_per_chunk", "0", [](R& r) { Layout(r).set_tokens_per_chunk(0); }},
      {"tokens_per_chunk", "24", [](R& r) { Layout(r).set_tokens_per_chunk(24); }},
      {"tokens_per_chunk", "512", [](R& r) { Layout(r).set_tokens_per_chunk(512); }},
      {"tokens_per_chunk", "4294967295", [](R& r) { Layout(r).set_tokens_per_chunk(UINT32_MAX); }},
      {"layer_stride", "0", [](R& r) { Layout(r).set_layer_stride(0); }},
      {"layer_stride", "1", [](R& r) { Layout(r).set_layer_stride(1); }},
      {"head_stride", "0", [](R& r) { Layout(r).set_head_stride(0); }},
      {"head_stride", "3", [](R& r) { Layout(r).set_head_stride(3); }},
      {"k_offset", "1", [](R& r) { Layout(r).set_k_offset(1); }},
      {"k_token_stride", "0", [](R& r) { Layout(r).set_k_token_stride(0); }},
      {"k_token_stride", "127", [](R& r) { Layout(r).set_k_token_stride(127); }},
      {"k_channel_stride", "0", [](R& r) { Layout(r).set_k_channel_stride(0); }},
      {"v_offset", "7", [](R& r) { Layout(r).set_v_offset(7); }},
      {"v_token_stride", "0", [](R& r) { Layout(r).set_v_token_stride(0); }},
      {"v_channel_stride", "0", [](R& r) { Layout(r).set_v_channel_stride(0); }},
      {"v_channel_stride", "1", [](R& r) { Layout(r).set_v_channel_stride(1); }},
      {"places[1].first_token", "64", [](R& r) { Place(r).set_first_token(64); }},
      {"places[1].first_token", "1", [](R& r) { Place(r).set_first_token(1); }},
      {"places[1].first_token", "4294967295", [](R& r) { Place(r).set_first_token(UINT32_MAX); }},
      {"places[1].chunk_offsets", "has 0", [](R& r) { Place(r).clear_chunk_offsets(); }},
      {"places[1].chunk_offsets", "has 2", [](R& r) { Place(r).add_chunk_offsets(0); }},
      {"places[1].chunk_offsets[0]", "1", [](R& r) { Place(r).set_chunk_offsets(0, 1); }},
      {"places[1].chunk_offsets[0]", std::to_string(kTestBlockBytes + 2),
       [](R& r) { Place(r).set_chunk_offsets(0, kTestBlockBytes + 2); }},
      {"places[1].chunk_offsets[0]", std::to_string(kMax - 1),
       [](R& r) { Place(r).set_chunk_offsets(0, kMax - 1); }},
  };
  ExpectAllRefused<R>(table, GoodStore(),
                      [](const R& r) { return CheckStoreWithPages(r, r.payload().size()); });
}

TEST(ValidateStore, EveryStrideThatOverflowsOrLeavesTheMemory_IsRefused) {
  using Setter = void (wire::PageLayout::*)(uint64_t);
  const Setter setters[] = {
      &wire::PageLayout::set_layer_stride,     &wire::PageLayout::set_head_stride,
      &wire::PageLayout::set_k_offset,         &wire::PageLayout::set_k_token_stride,
      &wire::PageLayout::set_k_channel_stride, &wire::PageLayout::set_v_offset,
      &wire::PageLayout::set_v_token_stride,   &wire::PageLayout::set_v_channel_stride};
  const uint64_t memory = kBlocks * kTestBlockBytes;
  for (Setter set : setters) {
    for (uint64_t value : {memory, uint64_t{1} << 32, uint64_t{1} << 57, uint64_t{1} << 63,
                           kMax - 1, (kMax / 63) & ~uint64_t{1}, (kMax / 63 + 2) & ~uint64_t{1}}) {
      wire::StoreRequest request = GoodStore();
      (Layout(request).*set)(value);
      EXPECT_EQ(CheckStoreWithPages(request, memory).code(), Code::kInvalidArgument) << value;
    }
  }
}

TEST(ValidateStore, ChunkSizes_WantTheirChunks) {
  for (uint32_t tokens : {8, 16, 32, 64, 128, 256}) {
    wire::StoreRequest request = GoodStore();
    Layout(request).set_tokens_per_chunk(tokens);
    Layout(request).set_v_offset(0);
    for (auto& place : *request.mutable_pages()->mutable_places()) {
      place.clear_chunk_offsets();
      place.set_first_token(tokens > 64 ? tokens - 64 : 0);
      for (uint32_t i = 0; i < std::max(1u, 64 / tokens); ++i) place.add_chunk_offsets(0);
    }
    EXPECT_TRUE(CheckStoreWithPages(request, uint64_t{1} << 30).ok()) << tokens;
  }
}

TEST(ValidateLookup, EachBadField_IsNamedWithItsValue) {
  using R = wire::LookupRequest;
  R good;
  good.set_keys(std::string(64, 'k'));
  const std::vector<BadField<R>> table = {
      {"keys", "0", [](R& r) { r.clear_keys(); }},
      {"keys", "33", [](R& r) { r.set_keys(std::string(33, 'k')); }},
      {"keys", "9", [](R& r) { r.set_keys(std::string(9 * 32, 'k')); }, Code::kResourceExhausted},
      {"min_profile", "4", [](R& r) { r.set_min_profile(wire::PROFILE_UNIVERSAL); }},
      {"min_profile", "99", [](R& r) { r.set_min_profile(static_cast<wire::Profile>(99)); }},
  };
  ExpectAllRefused<R>(table, good, [](const R& r) { return CheckLookup(r, Limits()); });
}

TEST(ValidateLoad, EachBadField_IsNamedWithItsValue) {
  using R = wire::LoadRequest;
  R good;
  good.set_block_count(2);
  const std::vector<BadField<R>> table = {
      {"block_count", "0", [](R& r) { r.set_block_count(0); }},
      {"block_count", "5", [](R& r) { r.set_block_count(5); }},
      {"block_count", "9", [](R& r) { r.set_block_count(9); }, Code::kResourceExhausted},
      {"block_count", "4294967295", [](R& r) { r.set_block_count(UINT32_MAX); },
       Code::kResourceExhausted},
      {"first_block", "3", [](R& r) { r.set_first_block(3); }},
      {"first_block", "4294967295", [](R& r) { r.set_first_block(UINT32_MAX); }},
      {"min_profile", "4", [](R& r) { r.set_min_profile(wire::PROFILE_UNIVERSAL); }},
      {"block_count", "4", [](R& r) { r.set_block_count(4); }, Code::kResourceExhausted},
      {"pages.segment_id", "0", [](R& r) { *r.mutable_pages() = TestPlaces(2, 0); }},
  };
  ExpectAllRefused<R>(table, good,
                      [](const R& r) { return CheckLoad(r, Shape(), kLeased, Limits()); });
}

TEST(ValidateAttend, EachBadField_IsNamedWithItsValue) {
  using R = wire::AttendRequest;
  R good;
  good.set_layer(1);
  good.set_block_count(4);
  good.set_q_heads_per_kv_head(2);
  good.set_scale(0.125f);
  good.set_q(std::string(kTestHeads * 2 * kTestHeadSize * 4, '\0'));
  const std::vector<BadField<R>> table = {
      {"layer", "2", [](R& r) { r.set_layer(2); }},
      {"layer", "4294967295", [](R& r) { r.set_layer(UINT32_MAX); }},
      {"block_count", "0", [](R& r) { r.set_block_count(0); }},
      {"block_count", "5", [](R& r) { r.set_block_count(5); }},
      {"block_count", "9", [](R& r) { r.set_block_count(9); }, Code::kResourceExhausted},
      {"q_heads_per_kv_head", "0", [](R& r) { r.set_q_heads_per_kv_head(0); }},
      {"q_heads_per_kv_head", "17", [](R& r) { r.set_q_heads_per_kv_head(17); }},
      {"q_heads_per_kv_head", "4294967295", [](R& r) { r.set_q_heads_per_kv_head(UINT32_MAX); }},
      {"scale", "0", [](R& r) { r.set_scale(0); }},
      {"scale", "-1", [](R& r) { r.set_scale(-1); }},
      {"scale", "nan", [](R& r) { r.set_scale(std::nanf("")); }},
      {"scale", "inf", [](R& r) { r.set_scale(std::numeric_limits<float>::infinity()); }},
      {"q", "1023", [](R& r) { r.mutable_q()->pop_back(); }},
      {"q", "0", [](R& r) { r.clear_q(); }},
  };
  ExpectAllRefused<R>(table, good,
                      [](const R& r) { return CheckAttend(r, Shape(), kLeased, Limits()); });
}

TEST(ValidateRelease, EachBadField_IsNamedWithItsValue) {
  using R = wire::ReleaseRequest;
  R good;
  good.add_lease_ids(std::string(16, 'l'));
  const std::vector<BadField<R>> table = {
      {"lease_ids[1]", "15", [](R& r) { r.add_lease_ids(std::string(15, 'l')); }},
      {"lease_ids[1]", "0", [](R& r) { r.add_lease_ids(""); }},
      {"lease_ids", "3",
       [](R& r) {
         r.add_lease_ids(std::string(16, 'l'));
         r.add_lease_ids(std::string(16, 'l'));
       },
       Code::kResourceExhausted},
  };
  ExpectAllRefused<R>(table, good, [](const R& r) { return CheckRelease(r, 2); });
}

}  // namespace
}  // namespace fq
