// A page path on a small store with a synthetic codec set, without any wire. For page_path_*_test.
#pragma once

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "server/namespaces.h"
#include "server/page_path.h"
#include "server/quality_watch.h"
#include "tests/testing/measured_codec_set.h"
#include "tests/testing/running_node.h"

namespace fq {

class PagePathTest : public testing::Test {
 protected:
  PagePathTest()
      : set_(MeasuredSet()),
        registry_({4, 4}, {set_}, ScalarBackend()),
        tiers_(MakeTiers(8 << 20)) {
    space_ = *registry_.Open("t", "n", DescriptorOfSet(), {0, kTestLayers, 0, kTestHeads});
  }

  Descriptor DescriptorOfSet() const {
    Descriptor d;
    d.model = "m";
    d.layers = kTestLayers;
    d.kv_heads = kTestHeads;
    d.head_size = kTestHeadSize;
    d.codec_set_id = std::string(set_->id().begin(), set_->id().end());
    return d;
  }

  // One for all tests: measuring takes half a second.
  static std::shared_ptr<const CodecSet> MeasuredSet() {
    static const auto* const set = new std::shared_ptr<const CodecSet>(
        *CodecSet::Parse(BuildMeasuredCodecSet(kTestLayers, kTestHeads, kTestHeadSize, 1)));
    return *set;
  }

  // Host memory alone; one shard, so that its order of eviction is exact.
  static std::unique_ptr<Tiers> MakeTiers(uint64_t host_bytes) {
    TiersOptions options;
    options.host.capacity_bytes = host_bytes;
    options.host.shards = 1;
    return *Tiers::Create(std::move(options));
  }

  static absl::Span<std::byte> Bytes(std::string& text) {
    return absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size());
  }

  static BlockKey Key(uint8_t name) {
    BlockKey key{};
    key[0] = name;
    return key;
  }
  SlabKey Slab(uint8_t name) const { return {space_->scope, Key(name)}; }

  // Blocks `first` .. `first + count - 1` of the one chain; block i has key i.
  StoreCall Batch(Profile profile, uint8_t first, uint8_t count) {
    memory_ = TestPages(*set_, count, 1000u * first + 1);
    StoreCall call;
    call.profile = profile;
    call.first_block_index = first;
    call.source.pages.layout = DenseLayout(space_->shape());
    for (uint8_t i = 0; i < count; ++i) {
      call.keys.push_back(Key(static_cast<uint8_t>(first + i)));
      call.source.pages.places.push_back({{i * kTestBlockBytes}, 0});
    }
    for (int i = std::max(0, first - 2); i < first; ++i) {
      call.preceding_keys.push_back(Key(static_cast<uint8_t>(i)));
    }
    call.source.memory = Bytes(memory_);
    return call;
  }

  std::vector<BlockOutcome> StoreBatch(Profile profile, uint8_t first, uint8_t count) {
    auto outcomes = path_.StoreBlocks({}, *space_, Batch(profile, first, count));
    EXPECT_TRUE(outcomes.ok()) << outcomes.status();
    return *outcomes;
  }

  // 'r' with refinement, 'b' base alone, 'e' exact, 'u' universal, '-' not here; one per block.
  std::string Held(uint8_t count) {
    std::string held;
    for (uint8_t i = 0; i < count; ++i) {
      const Pin pin = tiers_->Find(Slab(i));
      held += !pin ? '-' : "erbu"[static_cast<int>(DeliveredProfile(pin)) - 1];
    }
    return held;
  }

  LookupResult Find(uint8_t count, Profile floor = Profile::kCompact) {
    LookupCall call;
    for (uint8_t i = 0; i < count; ++i) call.keys.push_back(Key(i));
    call.floor = floor;
    return path_.Lookup(*space_, call);
  }

  static constexpr auto kOk = BlockOutcome::kOk;
  static constexpr auto kExists = BlockOutcome::kExists;
  static constexpr auto kMiss = BlockOutcome::kMiss;
  static constexpr auto kFull = BlockOutcome::kFull;
  static constexpr auto kBelowFloor = BlockOutcome::kBelowFloor;

  std::shared_ptr<const CodecSet> set_;
  NamespaceRegistry registry_;
  std::unique_ptr<Tiers> tiers_;
  Metrics metrics_;
  std::ostringstream log_text_;
  Log log_{std::make_shared<spdlog::sinks::ostream_sink_mt>(log_text_, /*force_flush=*/true),
           LogLevel::kDebug, LogFormat::kText};
  FakeClock clock_;
  QualityWatch watch_{
      {/*sample_every=*/1, /*drift_ratio=*/1.5}, &metrics_, &log_, [this] { return clock_.Now(); }};
  WorkerPool workers_{2, 64};  // behind what its jobs use
  PagePath path_{tiers_.get(), nullptr, &workers_, &metrics_, &watch_};
  std::shared_ptr<const SlabSpace> space_;
  std::string memory_;
};

}  // namespace fq
