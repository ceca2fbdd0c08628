#include "kernels/slab.h"

#include <cmath>
#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/codec/checksum.h"
#include "kernels/slab_header.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

using ::testing::HasSubstr;

constexpr int kD = 64;

std::shared_ptr<const CodecSet> SmallSet(uint64_t seed = 11) {
  auto set = CodecSet::Parse(BuildCodecSet(2, 3, kD, seed));
  EXPECT_TRUE(set.ok()) << set.status();
  return *set;
}

SlabShape SmallShape() { return {1, 2, 1, 3, kD, DType::kF32}; }

BlockId MakeId(uint32_t index, uint16_t tokens) {
  BlockId id;
  id.key.fill(0x5A);
  id.index = index;
  id.tokens = tokens;
  return id;
}

// The pages of one block as FP32 rows [page][K, V][64][d].
struct Rows32 {
  explicit Rows32(int pages) : values(pages * 2 * 64 * kD) {}

  template <typename Page>
  std::vector<Page> Pages() {
    std::vector<Page> pages(values.size() / (2 * 64 * kD));
    for (size_t i = 0; i < pages.size(); ++i) {
      auto* bytes = reinterpret_cast<std::byte*>(values.data() + i * 2 * 64 * kD);
      pages[i].k.chunks[0] = bytes;
      pages[i].v.chunks[0] = bytes + 64 * kD * 4;
      pages[i].k.token_stride = pages[i].v.token_stride = kD;
    }
    return pages;
  }

  std::vector<float> values;
};

Rows32 Sample(const CodecSet& set, const SlabShape& shape) {
  Rows32 rows(shape.pages());
  float* row = rows.values.data();
  uint64_t seed = 1;
  for (int layer = shape.layer_begin; layer < shape.layer_end; ++layer) {
    for (int head = shape.head_begin; head < shape.head_end; ++head) {
      for (int i = 0; i < 128; ++i, row += kD) {
        MakeRow(i < 64 ? set.k(layer, head) : set.v(layer, head), kD, ++seed, row);
      }
    }
  }
  return rows;
}

// A slab codec with one encoded block.
class SlabTest : public ::testing::Test {
 protected:
  void SetUp() override {
    set_ = SmallSet();
    auto codec = SlabCodec::Create(SmallShape(), set_, CpuBackend());
    ASSERT_TRUE(codec.ok()) << codec.status();
    codec_ = std::move(*codec);
    source_ = std::make_unique<Rows32>(Sample(*set_, SmallShape()));
  }

  std::vector<std::byte> Extent(PageKind kind, bool sink) const {
    return std::vector<std::byte>(*codec_->ExtentBytes(kind, sink));
  }

  std::vector<std::byte> Encoded(PageKind kind, const BlockId& id,
                                 std::vector<std::byte>* refinement = nullptr) {
    std::vector<std::byte> primary = Extent(kind, id.index == 0);
    if (refinement != nullptr) *refinement = Extent(PageKind::kRefinement, id.index == 0);
    const absl::Status status = codec_->Encode(
        kind, id, source_->Pages<SourcePage>(), absl::MakeSpan(primary),
        refinement == nullptr ? absl::Span<std::byte>() : absl::MakeSpan(*refinement));
    EXPECT_TRUE(status.ok()) << status;
    return primary;
  }

  // Relative squared error of the delivered rows.
  double Error(const BlockId& id, const std::vector<std::byte>& primary,
               const std::vector<std::byte>& refinement) {
    Rows32 target(SmallShape().pages());
    const absl::Status status = codec_->Decode(id, primary, refinement, target.Pages<TargetPage>());
    EXPECT_TRUE(status.ok()) << status;
    double error = 0, power = 0;
    for (size_t i = 0; i < target.values.size(); ++i) {
      if (static_cast<int>(i / kD % 64) >= id.tokens) continue;
      error += std::pow(target.values[i] - source_->values[i], 2);
      power += std::pow(source_->values[i], 2);
    }
    return error / power;
  }

  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<const SlabCodec> codec_;
  std::unique_ptr<Rows32> source_;
};

TEST_F(SlabTest, EveryKind_RoundTrip_ErrorFallsWithBits) {
  for (uint32_t index : {0u, 5u}) {
    for (uint16_t tokens : {1, 16, 17, 64}) {
      const BlockId id = MakeId(index, tokens);
      std::vector<std::byte> refinement;
      const auto base = Encoded(PageKind::kBase, id, &refinement);
      EXPECT_EQ(Error(id, Encoded(PageKind::kExact, id), {}), 0);
      EXPECT_LT(Error(id, Encoded(PageKind::kUniversal, id), {}), 0.02);
      EXPECT_LT(Error(id, base, {}), 0.5);
      EXPECT_LT(Error(id, base, refinement), 0.9 * Error(id, base, {}) + 1e-4);
    }
  }
}

TEST_F(SlabTest, MeasureError_EveryPage_IsThatOfThePageAlone) {
  const BlockId id = MakeId(3, 40);
  std::vector<std::byte> refinement;
  const auto base = Encoded(PageKind::kBase, id, &refinement);
  const auto pages = source_->Pages<SourcePage>();
  for (int page = 0; page < SmallShape().pages(); ++page) {
    const auto refined = codec_->MeasureError(id, page, pages[page], base, refinement);
    const auto alone = codec_->MeasureError(id, page, pages[page], base, {});
    ASSERT_TRUE(refined.ok() && alone.ok()) << refined.status() << alone.status();
    for (int side : {0, 1}) {
      EXPECT_NE(refined->error[side], alone->error[side]);
      EXPECT_LT(refined->error[side], 0.6 * refined->energy[side]);
      EXPECT_LT(alone->error[side], 0.6 * alone->energy[side]);
    }
  }
  const auto other =
      codec_->MeasureError(id, 0, pages[1], base, {});  // not the rows it was made of
  EXPECT_GT(other->error[0], other->energy[0]);
}

TEST_F(SlabTest, MeasureError_WhatDoesNotFit_InvalidArgument) {
  const BlockId id = MakeId(3, 64);
  const auto base = Encoded(PageKind::kBase, id);
  const auto pages = source_->Pages<SourcePage>();
  const std::vector<std::byte> shorter(base.begin(), base.end() - 64);
  SourcePage nowhere;
  for (const auto& result : {codec_->MeasureError(id, -1, pages[0], base, {}),
                             codec_->MeasureError(id, 2, pages[0], base, {}),
                             codec_->MeasureError(id, 0, nowhere, base, {}),
                             codec_->MeasureError(id, 0, pages[0], shorter, {}),
                             codec_->MeasureError(MakeId(3, 65), 0, pages[0], base, {}),
                             codec_->MeasureError(id, 0, pages[0], base, shorter)}) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << result.status();
  }
  auto plain = *SlabCodec::Create(SmallShape(), nullptr, CpuBackend());
  EXPECT_EQ(plain->MeasureError(id, 0, pages[0], base, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(SlabTest, Header_HoldsFieldsAsFormatSays) {
  const auto extent = Encoded(PageKind::kBase, MakeId(0, 17));
  SlabHeader header;
  std::memcpy(&header, extent.data(), sizeof(header));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(extent.data()), 4), "FQS1");
  EXPECT_EQ(header.version, 1);
  EXPECT_EQ(header.kind, 1);
  EXPECT_EQ(header.flags, 1);
  EXPECT_EQ(header.layer_begin, 1);
  EXPECT_EQ(header.head_end, 3);
  EXPECT_EQ(header.tokens, 17);
  EXPECT_EQ(header.head_size, kD);
  EXPECT_EQ(header.dtype, 2);
  EXPECT_EQ(header.page_count, 2u);
  EXPECT_EQ(header.payload_bytes, extent.size() - 192);
  EXPECT_EQ(std::memcmp(header.codec_set_id, set_->id().data(), 32), 0);
}

TEST_F(SlabTest, Verify_EverySingleFlippedBit_DataLoss) {
  SlabShape shape = SmallShape();
  shape.head_end = 2;
  auto codec = SlabCodec::Create(shape, set_, CpuBackend());
  ASSERT_TRUE(codec.ok()) << codec.status();
  const BlockId id = MakeId(3, 64);
  std::vector<std::byte> extent(*(*codec)->ExtentBytes(PageKind::kBase, false));
  auto pages = source_->Pages<SourcePage>();
  pages.resize(1);
  ASSERT_TRUE((*codec)->Encode(PageKind::kBase, id, pages, absl::MakeSpan(extent), {}).ok());
  ASSERT_TRUE((*codec)->Verify(id, extent).ok());
  for (size_t bit = 0; bit < 8 * extent.size(); ++bit) {
    extent[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ((*codec)->Verify(id, extent).code(), absl::StatusCode::kDataLoss) << bit;
    extent[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST_F(SlabTest, Verify_OtherIdLengthOrShape_SaysWhatDiffers) {
  const BlockId id = MakeId(3, 64);
  auto extent = Encoded(PageKind::kBase, id);
  BlockId other = id;
  other.key[0] = 0;
  EXPECT_THAT(std::string(codec_->Verify(other, extent).message()), HasSubstr("block key"));
  other = id;
  other.index = 4;
  EXPECT_THAT(std::string(codec_->Verify(other, extent).message()),
              HasSubstr("block index is 3, expected 4"));
  EXPECT_THAT(std::string(codec_->Verify(MakeId(3, 63), extent).message()),
              HasSubstr("tokens is 64, expected 63"));
  extent.pop_back();
  EXPECT_THAT(std::string(codec_->Verify(id, extent).message()), HasSubstr("length"));
  extent.resize(100);
  EXPECT_EQ(codec_->Verify(id, extent).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(codec_->Verify(id, {}).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(codec_->Verify(MakeId(3, 65), extent).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SlabTest, Verify_OtherCodecSet_DataLoss) {
  const BlockId id = MakeId(3, 64);
  const auto extent = Encoded(PageKind::kBase, id);
  auto other = SlabCodec::Create(SmallShape(), SmallSet(12), CpuBackend());
  EXPECT_THAT(std::string((*other)->Verify(id, extent).message()), HasSubstr("codec set id"));
  auto none = SlabCodec::Create(SmallShape(), nullptr, CpuBackend());
  EXPECT_EQ((*none)->Verify(id, extent).code(), absl::StatusCode::kDataLoss);
}

TEST_F(SlabTest, Decode_DamagedRefinement_WritesNothing) {
  const BlockId id = MakeId(3, 64);
  std::vector<std::byte> refinement;
  const auto base = Encoded(PageKind::kBase, id, &refinement);
  refinement.back() ^= std::byte{1};
  Rows32 target(SmallShape().pages());
  const auto pages = target.Pages<TargetPage>();
  EXPECT_EQ(codec_->Decode(id, base, refinement, pages).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(target.values, ::testing::Each(0.0f));
}

TEST_F(SlabTest, Decode_SwappedExtents_DataLoss) {
  const BlockId id = MakeId(3, 64);
  std::vector<std::byte> refinement;
  const auto base = Encoded(PageKind::kBase, id, &refinement);
  Rows32 target(SmallShape().pages());
  const auto pages = target.Pages<TargetPage>();
  EXPECT_EQ(codec_->Decode(id, refinement, base, pages).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(codec_->Decode(id, base, base, pages).code(), absl::StatusCode::kDataLoss);
}

TEST_F(SlabTest, Encode_WrongArguments_InvalidArgument) {
  const auto pages = source_->Pages<SourcePage>();
  const BlockId id = MakeId(3, 64);
  auto extent = Extent(PageKind::kBase, false);
  const auto encode = [&](PageKind kind, const BlockId& block, absl::Span<const SourcePage> from,
                          absl::Span<std::byte> to, absl::Span<std::byte> refinement) {
    return codec_->Encode(kind, block, from, to, refinement).code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto all = absl::MakeSpan(extent);
  EXPECT_EQ(encode(PageKind::kRefinement, id, pages, all, {}), invalid);
  EXPECT_EQ(encode(static_cast<PageKind>(9), id, pages, all, {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, MakeId(3, 0), pages, all, {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, MakeId(3, 65), pages, all, {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, id, absl::MakeSpan(pages).first(1), all, {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, id, pages, all.first(10), {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, MakeId(0, 64), pages, all, {}), invalid);
  EXPECT_EQ(encode(PageKind::kBase, id, pages, all, all.first(8)), invalid);
  auto broken = pages;
  broken[1].v.chunks[0] = nullptr;
  EXPECT_EQ(encode(PageKind::kBase, id, broken, all, {}), invalid);
  broken = pages;
  broken[0].k.tokens_per_chunk = 4;
  EXPECT_EQ(encode(PageKind::kBase, id, broken, all, {}), invalid);
}

TEST(SlabCodecCreate, ShapeThatDoesNotFit_NamesFieldAndBothValues) {
  const auto set = SmallSet();
  const auto message = [&](const SlabShape& shape) {
    return std::string(SlabCodec::Create(shape, set, CpuBackend()).status().message());
  };
  EXPECT_THAT(message({0, 3, 0, 3, 64, DType::kF16}),
              HasSubstr("layer_end is 3, expected at most 2"));
  EXPECT_THAT(message({0, 2, 0, 4, 64, DType::kF16}), HasSubstr("head_end is 4"));
  EXPECT_THAT(message({0, 2, 0, 3, 128, DType::kF16}), HasSubstr("head_size is 128, expected 64"));
  EXPECT_THAT(message({0, 2, 0, 3, 80, DType::kF16}), HasSubstr("head_size is 80"));
  EXPECT_THAT(message({1, 1, 0, 3, 64, DType::kF16}), HasSubstr("layer_end is 1"));
  EXPECT_THAT(message({0, 2, 0, 3, 64, static_cast<DType>(3)}), HasSubstr("element type is 3"));
}

TEST(SlabCodecCreate, WithoutCodecSet_OnlyExactAndUniversal) {
  const auto codec = SlabCodec::Create(SmallShape(), nullptr, CpuBackend());
  ASSERT_TRUE(codec.ok());
  EXPECT_TRUE((*codec)->ExtentBytes(PageKind::kExact, false).ok());
  EXPECT_EQ(*(*codec)->ExtentBytes(PageKind::kUniversal, true),
            192 + 2 * (64 * kD + 256 + 32 * kD + 128u));
  EXPECT_EQ((*codec)->ExtentBytes(PageKind::kBase, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace fq
