// The store keeps the promises of every tier, over the memory of the host and over memory that
// comes in large granules, as that of a GPU does (memory_device_test is the same on one).
#include "kernels/memory/ahead_space.h"
#include "tests/conformance/tier_stress.h"
#include "tests/conformance/tier_suite.h"
#include "tests/testing/strict_space.h"

namespace fq::conformance {
namespace {

struct HostTier {
  static constexpr size_t kScale = 1;
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 16}).value();
  }
};

struct HostTierOfOneShard {
  static constexpr size_t kScale = 1;
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 1}).value();
  }
};

constexpr size_t kGranule = size_t{2} << 20;

struct TierOfLargeGranules {
  static constexpr size_t kScale = 32;  // slabs of one granule, refinements of half of one
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create(
               {capacity_bytes, 16, std::make_shared<StrictSpace>(kGranule, capacity_bytes)})
        .value();
  }
};

// As of a node on a GPU: a thread has granules ready.
struct TierAhead {
  static constexpr size_t kScale = TierOfLargeGranules::kScale;
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 16,
                          CreateAheadSpace(std::make_unique<StrictSpace>(kGranule, capacity_bytes),
                                           {capacity_bytes, capacity_bytes / 2})})
        .value();
  }
};

using Tiers = testing::Types<HostTier, HostTierOfOneShard, TierOfLargeGranules, TierAhead>;
INSTANTIATE_TYPED_TEST_SUITE_P(Host, TierSuite, Tiers);

TEST(HostTierStress, ManyThreads_FarOverCapacity_StaysWhole) {
  const StressShape shape;
  const auto store = HostTier::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

TEST(HostTierStress, ManyThreads_OneShardFewKeys_StaysWhole) {
  StressShape shape;
  shape.keys = 12;
  shape.operations_per_thread = 10000;
  shape.capacity_bytes = 96 << 10;
  const auto store = HostTierOfOneShard::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

template <typename Tier>
class LargeGranulesStress : public testing::Test {};
using LargeGranules = testing::Types<TierOfLargeGranules, TierAhead>;
TYPED_TEST_SUITE(LargeGranulesStress, LargeGranules);

TYPED_TEST(LargeGranulesStress, ManyThreads_FarOverCapacity_StaysWhole) {
  StressShape shape;
  shape.scale = 64;  // several slabs to a granule, and several granules to a slab
  shape.operations_per_thread = 1500;
  shape.capacity_bytes = 16 * kGranule;
  const auto store = TypeParam::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

TYPED_TEST(LargeGranulesStress, ManyThreads_SmallSlabs_StaysWhole) {
  StressShape shape;
  shape.scale = 8;
  shape.operations_per_thread = 5000;
  shape.capacity_bytes = 5 * kGranule;  // hardly more than one for each size
  const auto store = TypeParam::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

}  // namespace
}  // namespace fq::conformance
