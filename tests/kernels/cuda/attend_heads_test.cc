#include "kernels/cuda/attend_heads.h"

#include "gtest/gtest.h"
#include "kernels/codec/page_layout.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

class AttendHeadsTest : public testing::Test {
 protected:
  void SetUp() override {
    auto set = CodecSet::Parse(BuildCodecSet(3, 4, 64, 5));
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *set;
  }
  uint32_t Bytes(PageKind kind, bool sink, int layer, int head) const {
    return static_cast<uint32_t>(
        PageBytes({kind, DType::kF16, 64, sink}, &set_->profile(layer, head)));
  }

  std::shared_ptr<const CodecSet> set_;
};

// A slab of layers 1 and on, heads 1 and 2: layer-major, pages without gaps.
TEST_F(AttendHeadsTest, Offsets_SecondLayerOfASlab_BehindTheFirst) {
  const AttendLayer layer = DescribeLayer(*set_, {1, 1, 3, DType::kF16}, 2, true, nullptr);
  ASSERT_EQ(layer.heads.size(), 2u);
  const auto& second = layer.heads[1];
  for (bool sink : {false, true}) {
    const uint32_t before = Bytes(PageKind::kBase, sink, 1, 1) +
                            Bytes(PageKind::kBase, sink, 1, 2) + Bytes(PageKind::kBase, sink, 2, 1);
    EXPECT_EQ(sink ? second.sink_block_offset : second.base_offset, before);
  }
  EXPECT_EQ(second.sink_record_offset, second.sink_block_offset + second.base_bytes);
  EXPECT_EQ(second.exact_offset, 3 * Bytes(PageKind::kExact, false, 1, 1));
  EXPECT_EQ(layer.heads[0].refinement_offset,
            Bytes(PageKind::kRefinement, false, 1, 1) + Bytes(PageKind::kRefinement, false, 1, 2));
  EXPECT_EQ(second.sink_record_bytes, static_cast<int>(SinkRecordBytes(64)));
}

TEST_F(AttendHeadsTest, Codes_HeadsOfOneProfile_ShareAnInstance) {
  // Profiles go round in four: heads 0..3 of a layer all differ.
  const AttendLayer four = DescribeLayer(*set_, {0, 0, 4, DType::kF16}, 0, false, nullptr);
  EXPECT_EQ(four.variant.instances.size(), 4u);
  EXPECT_EQ(four.heads[3].base_code, kAttendFirstProfile + 3);
  EXPECT_EQ(four.heads[3].refined_code, -1);
  auto same = CodecSet::Parse(
      PatchCodecSet(BuildCodecSet(1, 4, 64, 5), R"({"profile_of": [[1, 1, 2, 1]]})"));
  ASSERT_TRUE(same.ok()) << same.status();
  const AttendLayer two = DescribeLayer(**same, {0, 0, 4, DType::kBF16}, 0, true, nullptr);
  EXPECT_EQ(two.variant.instances.size(), 4u);  // two profiles, without and with refinement
  EXPECT_EQ(two.heads[3].base_code, two.heads[0].base_code);
  EXPECT_EQ(two.heads[3].refined_code, two.heads[1].refined_code);
  EXPECT_TRUE(two.variant.bf16);
}

TEST_F(AttendHeadsTest, Costs_Refinements_CostMore) {
  const AttendLayer layer = DescribeLayer(*set_, {0, 0, 4, DType::kF16}, 0, true, nullptr);
  for (const AttendHead& head : layer.heads) EXPECT_GT(head.refined_cost, head.base_cost);
}

}  // namespace
}  // namespace fq
