// The host tier keeps the promises of every tier.
#include "tests/conformance/tier_stress.h"
#include "tests/conformance/tier_suite.h"

namespace fq::conformance {
namespace {

struct HostTier {
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 16}).value();
  }
};

struct HostTierOfOneShard {
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 1}).value();
  }
};

using Tiers = testing::Types<HostTier, HostTierOfOneShard>;
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

}  // namespace
}  // namespace fq::conformance
