#include "kernels/slab_header.h"
#include "tests/server/page_path_fixture.h"

namespace fq {
namespace {

// Blocks that one node has stored, published on another one of the same namespace.
class PublishEncodedTest : public PagePathTest {
 protected:
  // The extents of block `index` of a chain that was stored here.
  struct Extents {
    std::string primary, refinement;
  };
  Extents StoredAs(Profile profile, uint8_t index) {
    EXPECT_EQ(StoreBatch(profile, 0, static_cast<uint8_t>(index + 1)).back(), kOk);
    const Pin pin = tiers_->Find(Slab(index));
    return {Text(pin.primary()), Text(pin.refinement())};
  }

  static std::string Text(absl::Span<const std::byte> bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  BlockOutcome Publish(uint8_t index, Extents& extents) {
    return there_.PublishEncoded(
        *space_,
        {{Key(index), index, kBlockTokens}, Bytes(extents.primary), Bytes(extents.refinement)},
        pin_);
  }
  StoreStats There() const { return tiers_there_->Stats().host; }

  std::unique_ptr<Tiers> tiers_there_ = MakeTiers(4 << 20);
  PagePath there_{tiers_there_.get(), nullptr, &workers_, &metrics_, &watch_};
  Pin pin_;
};

TEST_F(PublishEncodedTest, EveryProfile_IsHeldAsItIsByteByByte) {
  uint8_t sink = 0;
  for (const auto& [profile, delivered] :
       std::vector<std::pair<Profile, Profile>>{{Profile::kExact, Profile::kExact},
                                                {Profile::kUniversal, Profile::kUniversal},
                                                {Profile::kNearLossless, Profile::kNearLossless},
                                                {Profile::kCompact, Profile::kNearLossless}}) {
    Extents extents = StoredAs(profile, sink);
    EXPECT_EQ(Publish(sink, extents), kOk) << ProfileName(profile);
    EXPECT_EQ(Text(pin_.primary()), extents.primary);
    EXPECT_EQ(Text(pin_.refinement()), extents.refinement);
    EXPECT_EQ(DeliveredProfile(pin_), delivered);
    EXPECT_EQ(pin_.tag().block_index, sink);
    pin_ = Pin();
    tiers_there_->Erase(Slab(sink));
    tiers_->Erase(Slab(sink));
  }
}

TEST_F(PublishEncodedTest, RefinementGone_IsHeldAsCompact) {
  Extents extents = StoredAs(Profile::kNearLossless, 3);
  extents.refinement.clear();
  EXPECT_EQ(Publish(3, extents), kOk);
  EXPECT_EQ(DeliveredProfile(pin_), Profile::kCompact);
  EXPECT_EQ(pin_.tag().profile, static_cast<uint8_t>(Profile::kCompact));
}

TEST_F(PublishEncodedTest, ThereAlready_IsLeftAsItIs) {
  Extents extents = StoredAs(Profile::kNearLossless, 1);
  ASSERT_EQ(Publish(1, extents), kOk);
  extents.refinement.clear();
  EXPECT_EQ(Publish(1, extents), kExists);
  EXPECT_FALSE(pin_.refinement().empty());
  EXPECT_EQ(There().slabs, 1u);
}

TEST_F(PublishEncodedTest, AnyFlippedByte_IsRefusedAndNothingIsHeld) {
  const Extents good = StoredAs(Profile::kNearLossless, 1);
  for (std::string Extents::*part : {&Extents::primary, &Extents::refinement}) {
    for (size_t at = 0; at < (good.*part).size(); at += 61) {
      Extents bad = good;
      (bad.*part)[at] = static_cast<char>((bad.*part)[at] ^ 0x10);
      ASSERT_EQ(Publish(1, bad), BlockOutcome::kRefused) << "byte " << at;
    }
  }
  EXPECT_EQ(There().slabs + There().reserved_slabs + There().used_bytes, 0u);
}

TEST_F(PublishEncodedTest, WrongBlockLengthOrPart_IsRefused) {
  const Extents good = StoredAs(Profile::kNearLossless, 1);
  Extents other = StoredAs(Profile::kNearLossless, 2);
  EXPECT_EQ(Publish(1, other), BlockOutcome::kRefused);  // key and index of another block
  Extents swapped{good.refinement, good.primary}, alone{good.refinement, ""}, twice = good;
  twice.refinement = good.primary;
  Extents exact = StoredAs(Profile::kExact, 4);
  exact.refinement = good.refinement;
  for (Extents* bad : {&swapped, &alone, &twice})
    EXPECT_EQ(Publish(1, *bad), BlockOutcome::kRefused);
  EXPECT_EQ(Publish(4, exact), BlockOutcome::kRefused);
  for (int change : {-1, 1, 64}) {
    Extents bad = good;
    bad.primary.resize(static_cast<size_t>(static_cast<int>(good.primary.size()) + change));
    EXPECT_EQ(Publish(1, bad), BlockOutcome::kRefused) << change;
  }
  Extents none;
  EXPECT_EQ(Publish(1, none), BlockOutcome::kRefused);
  EXPECT_EQ(There().slabs, 0u);
}

TEST_F(PublishEncodedTest, OtherCodecSetOrShape_IsRefused) {
  Extents extents = StoredAs(Profile::kNearLossless, 1);
  Descriptor bare = DescriptorOfSet();
  bare.codec_set_id.clear();
  const auto without_set = *registry_.Open("t", "bare", bare, {0, kTestLayers, 0, kTestHeads});
  const auto half = *registry_.Open("t", "n", DescriptorOfSet(), {0, 1, 0, kTestHeads});
  const EncodedBlock block{{Key(1), 1, kBlockTokens}, Bytes(extents.primary), {}};
  EXPECT_EQ(there_.PublishEncoded(*without_set, block, pin_), BlockOutcome::kRefused);
  EXPECT_EQ(there_.PublishEncoded(*half, block, pin_), BlockOutcome::kRefused);
}

TEST_F(PublishEncodedTest, EverythingElsePinned_IsFull) {
  std::vector<Pin> pins;
  uint8_t index = 0;
  for (; index < 250; ++index) {
    ASSERT_EQ(StoreBatch(Profile::kExact, index, 1).front(), kOk);
    const Pin stored = tiers_->Find(Slab(index));
    Extents extents{Text(stored.primary()), ""};
    const BlockOutcome outcome = Publish(index, extents);
    if (outcome == kFull) break;
    ASSERT_EQ(outcome, kOk);
    pins.push_back(std::move(pin_));
  }
  EXPECT_GT(pins.size(), 10u);
  EXPECT_LT(index, 250);
  EXPECT_EQ(There().pinned_slabs, pins.size());
}

TEST_F(PublishEncodedTest, FindBlock_NeedsTheIndexToo) {
  StoreBatch(Profile::kExact, 0, 2);
  EXPECT_TRUE(path_.FindBlock(*space_, {Key(1), 1, kBlockTokens}));
  EXPECT_FALSE(path_.FindBlock(*space_, {Key(1), 2, kBlockTokens}));
  EXPECT_FALSE(path_.FindBlock(*space_, {Key(9), 9, kBlockTokens}));
}

}  // namespace
}  // namespace fq
