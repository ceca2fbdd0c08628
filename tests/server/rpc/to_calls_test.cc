#include "server/rpc/to_calls.h"

#include <gtest/gtest.h>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

TEST(ToCalls, Descriptor_GoesThereAndBack) {
  wire::NamespaceDescriptor message;
  message.set_model("m");
  message.set_weights_digest("w");
  message.set_layers(2);
  message.set_kv_heads(3);
  message.set_head_size(64);
  message.set_dtype(wire::DTYPE_F32);
  message.set_rope("r");
  message.set_codec_set_id("c");
  (*message.mutable_extra())["k"] = "v";
  EXPECT_EQ(ToDescriptor(message).dtype, DType::kF32);
  wire::NamespaceDescriptor back;
  FillDescriptor(ToDescriptor(message), back);
  EXPECT_EQ(back.SerializeAsString(), message.SerializeAsString());
}

TEST(ToCalls, EveryDType_KeepsItsWireNumber) {
  for (int number = wire::DTYPE_F16; number <= wire::DTYPE_F32; ++number) {
    wire::NamespaceDescriptor message;
    message.set_dtype(static_cast<wire::DType>(number));
    EXPECT_EQ(WireNumber(ToDescriptor(message).dtype), number);
  }
}

TEST(ToCalls, Layout_TakesEveryField) {
  wire::PageLayout message;
  message.set_tokens_per_chunk(1);
  message.set_layer_stride(2);
  message.set_head_stride(3);
  message.set_k_offset(4);
  message.set_k_token_stride(5);
  message.set_k_channel_stride(6);
  message.set_v_offset(7);
  message.set_v_token_stride(8);
  message.set_v_channel_stride(9);
  const PageLayout l = ToLayout(message);
  EXPECT_EQ(l.tokens_per_chunk, 1u);
  EXPECT_EQ(l.layer_stride, 2u);
  EXPECT_EQ(l.head_stride, 3u);
  EXPECT_EQ(l.k_offset, 4u);
  EXPECT_EQ(l.k_token_stride, 5u);
  EXPECT_EQ(l.k_channel_stride, 6u);
  EXPECT_EQ(l.v_offset, 7u);
  EXPECT_EQ(l.v_token_stride, 8u);
  EXPECT_EQ(l.v_channel_stride, 9u);
}

TEST(ToCalls, StoreRequest_BecomesACall) {
  wire::StoreRequest request;
  request.set_profile(wire::PROFILE_COMPACT);
  request.set_first_block_index(7);
  request.set_keys(TestKeys("a", 2));
  request.set_preceding_keys(TestKeys("b", 1));
  const StoreCall call = ToStoreCall(request);
  EXPECT_EQ(call.profile, Profile::kCompact);
  EXPECT_EQ(call.first_block_index, 7u);
  ASSERT_EQ(call.keys.size(), 2u);
  EXPECT_EQ(std::string(call.keys[1].begin(), call.keys[1].end()), request.keys().substr(32));
  EXPECT_EQ(call.preceding_keys.size(), 1u);
}

TEST(ToCalls, Pages_BecomeLayoutAndPlaces) {
  wire::Pages message = TestPlaces(2, 1);
  message.mutable_places(1)->set_first_token(64);
  const PagesAt pages = ToPages(message);
  EXPECT_EQ(pages.layout.tokens_per_chunk, 64u);
  EXPECT_EQ(pages.places[1].chunk_offsets[0], 2 * kTestBlockBytes);
  EXPECT_EQ(pages.places[1].first_token, 64u);
}

TEST(ToCalls, UnspecifiedFloor_IsCompact) {
  EXPECT_EQ(ToFloor(wire::PROFILE_UNSPECIFIED), Profile::kCompact);
  EXPECT_EQ(ToFloor(wire::PROFILE_EXACT), Profile::kExact);
}

TEST(ToCalls, Range_TakesEveryField) {
  wire::SlabRange message;
  message.set_layer_begin(1);
  message.set_layer_end(2);
  message.set_head_begin(3);
  message.set_head_end(4);
  const Range range = ToRange(message);
  EXPECT_EQ(range.layer_begin, 1u);
  EXPECT_EQ(range.layer_end, 2u);
  EXPECT_EQ(range.head_begin, 3u);
  EXPECT_EQ(range.head_end, 4u);
}

}  // namespace
}  // namespace fq
