// The checks of peer links on messages that no node has seen; peer_calls_test.cc sends them to one.
#include "server/rpc/validate_peers.h"

#include <gtest/gtest.h>

#include <functional>

#include "server/page_layout.h"

namespace fq {
namespace {

SlabShape Shape() {
  SlabShape shape;
  shape.layer_begin = 1;
  shape.layer_end = 4;
  shape.head_end = 2;
  shape.head_size = 128;
  shape.dtype = DType::kF32;
  return shape;
}

// 3 layers of [K|V][64][2][128] FP32.
constexpr uint64_t kHead = 512, kRow = 1024, kLayer = 2 * 64 * kRow, kBlock = 3 * kLayer;

wire::Pages PagesAt(std::initializer_list<uint64_t> offsets) {
  wire::Pages pages;
  wire::PageLayout& layout = *pages.mutable_layout();
  layout.set_tokens_per_chunk(64);
  layout.set_head_stride(kHead);
  layout.set_k_token_stride(kRow);
  layout.set_k_channel_stride(4);
  layout.set_v_offset(64 * kRow);
  layout.set_v_token_stride(kRow);
  layout.set_v_channel_stride(4);
  for (uint64_t offset : offsets) pages.add_places()->add_chunk_offsets(offset);
  return pages;
}

void ExpectNamed(const absl::Status& status, absl::string_view part) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << part;
  EXPECT_NE(status.message().find(part), absl::string_view::npos) << status;
}

TEST(ValidatePeers, Pages_MustFitAndLieDense) {
  ASSERT_EQ(DenseBlockBytes(Shape()), kBlock);
  const uint64_t window = 4 * kBlock, layer_bytes = window - 2 * kLayer;
  EXPECT_TRUE(CheckPeerPages(PagesAt({0, 3 * kBlock, 256}), 3, Shape(), layer_bytes).ok());
  ExpectNamed(CheckPeerPages(PagesAt({0, 3 * kBlock + 256}), 2, Shape(), layer_bytes),
              "pages.places[1].chunk_offsets[0]");
  ExpectNamed(CheckPeerPages(PagesAt({0}), 2, Shape(), layer_bytes), "pages.places has 1");
  const std::vector<std::pair<std::function<void(wire::PageLayout&)>, const char*>> cases = {
      {[](auto& l) { l.set_tokens_per_chunk(128); }, "tokens_per_chunk = 128: must be 64"},
      {[](auto& l) { l.set_layer_stride(kLayer); }, "layer_stride = 131072: must be 0"},
      {[](auto& l) { l.set_head_stride(kRow); }, "head_stride = 1024: must be 512"},
      {[](auto& l) { l.set_k_offset(16); }, "k_offset = 16: must be 0"},
      {[](auto& l) { l.set_k_token_stride(kHead); }, "k_token_stride = 512: must be 1024"},
      {[](auto& l) { l.set_k_channel_stride(2); }, "k_channel_stride = 2: must be 4"},
      {[](auto& l) { l.set_v_offset(0); }, "v_offset = 0: must be 65536"},
      {[](auto& l) { l.set_v_token_stride(0); }, "v_token_stride = 0: must be 1024"},
      {[](auto& l) { l.set_v_channel_stride(8); }, "v_channel_stride = 8: must be 4"},
  };
  for (const auto& [spoil, part] : cases) {
    wire::Pages pages = PagesAt({0});
    spoil(*pages.mutable_layout());
    ExpectNamed(CheckPeerPages(pages, 1, Shape(), layer_bytes), part);
  }
}

TEST(ValidatePeers, ExtentPlaces_AreOneOffsetEach) {
  wire::Pages pages = PagesAt({0, 512});
  ExpectNamed(CheckExtentPlaces(pages, 2, 1024), "pages.layout must be unset");
  pages.clear_layout();
  EXPECT_TRUE(CheckExtentPlaces(pages, 2, 1024).ok());
  ExpectNamed(CheckExtentPlaces(pages, 2, 512), "pages.places[1].chunk_offsets[0] = 512");
  ExpectNamed(CheckExtentPlaces(pages, 3, 1024), "pages.places has 2");
  pages.mutable_places(1)->set_chunk_offsets(0, 511);
  ExpectNamed(CheckExtentPlaces(pages, 2, 1024), "must be a multiple of 256");
  pages.mutable_places(1)->add_chunk_offsets(0);
  ExpectNamed(CheckExtentPlaces(pages, 2, 1024), "pages.places[1].chunk_offsets has 2");
  pages.mutable_places(0)->set_first_token(64);
  ExpectNamed(CheckExtentPlaces(pages, 2, 1024), "pages.places[0].first_token = 64");
}

TEST(ValidatePeers, Store_NeedsSequenceAndSums) {
  wire::StoreRequest store;
  store.add_peer_sums(1);
  ExpectNamed(CheckPeerStore(store, 1), "peer_sequence = 0");
  store.set_peer_sequence(1);
  EXPECT_TRUE(CheckPeerStore(store, 1).ok());
  ExpectNamed(CheckPeerStore(store, 2), "peer_sums has 1: must have one for each of 2");
}

TEST(ValidatePeers, Open_AtItsLimitsAndPastThem) {
  PeerLimits limits;
  limits.max_window_bytes = 8 * kBlock;
  limits.max_timeout = Milliseconds(100);
  wire::OpenPeerLinkRequest open;
  open.set_device_uuid(std::string(16, 'u'));
  open.set_window_bytes(8 * kBlock);
  open.set_timeout_ms(100);
  EXPECT_TRUE(CheckOpenPeerLink(open, Shape(), limits).ok());
  open.set_window_bytes(kBlock);
  EXPECT_TRUE(CheckOpenPeerLink(open, Shape(), limits).ok());
  open.set_window_bytes(8 * kBlock + 256);
  const absl::Status large = CheckOpenPeerLink(open, Shape(), limits);
  EXPECT_TRUE(absl::IsResourceExhausted(large)) << large;
  open.set_window_bytes(kBlock - 256);
  ExpectNamed(CheckOpenPeerLink(open, Shape(), limits), "window_bytes = 392960");
  open.set_window_bytes(kBlock + 128);
  ExpectNamed(CheckOpenPeerLink(open, Shape(), limits), "multiple of 256");
  open.set_window_bytes(kBlock);
  open.set_timeout_ms(101);
  ExpectNamed(CheckOpenPeerLink(open, Shape(), limits), "timeout_ms = 101");
  open.set_device_uuid("");
  ExpectNamed(CheckOpenPeerLink(open, Shape(), limits), "device_uuid has 0 bytes");
}

}  // namespace
}  // namespace fq
