// The page path on engines' tensors in device memory, with host memory in the GPU's place
// (tests/testing/host_device.h): the same pages as through host memory, and what may go wrong.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "server/page_path.h"
#include "tests/server/page_path_fixture.h"
#include "tests/testing/hooked_queue.h"
#include "tests/testing/host_device.h"

namespace fq {
namespace {

// An engine's cache as vLLM lays it out: per layer, chunks of 32 tokens, [K|V][token][head][d].
constexpr uint32_t kChunkTokens = 32;
constexpr uint64_t kRowBytes = kTestHeadSize * 2, kTokenBytes = kRowBytes * kTestHeads;
constexpr uint64_t kHalfBytes = kTokenBytes * kChunkTokens, kChunkBytes = 2 * kHalfBytes;
constexpr uint64_t kChunks = 24, kLayerBytes = kChunks * kChunkBytes;

class PagePathDeviceTest : public PagePathTest {
 protected:
  PagePathDeviceTest() : worker_(ShareKind::kIpcHandle, kTestLayers * kLayerBytes) {
    UseTiers(32 << 20);
    space_ = *device_registry_.Open("t", "n", DescriptorOfSet(), {0, kTestLayers, 0, kTestHeads});
    segment_ = MapSegment({});
  }
  ~PagePathDeviceTest() override {  // before what the thread of the tiers uses
    waits_before_moves_ = 0;
    lease_.pins.clear();
    device_path_.reset();
    tiers_.reset();
  }

  void UseTiers(uint64_t device_bytes) {
    device_path_.reset();
    TiersOptions options;
    options.host.capacity_bytes = 32 << 20;
    options.device.emplace();
    options.device->capacity_bytes = device_bytes;
    options.device->space = *device_.CreateSpace(device_bytes);
    options.moves.push_back(std::make_unique<HookedQueue>(*device_.CreateQueue(false), [this] {
      while (moving_->Stats().waits < waits_before_moves_) std::this_thread::yield();
    }));
    tiers_ = *Tiers::Create(std::move(options));
    moving_ = tiers_.get();
    device_path_ =
        std::make_unique<PagePath>(tiers_.get(), scheduler_.get(), &workers_, &metrics_, &watch_);
  }

  std::shared_ptr<const DeviceSegment> MapSegment(std::optional<IpcHandle> event) {
    DeviceRegistration registration;
    registration.uuid = device_.info().uuid;
    registration.allocations = {worker_.Share()};
    for (uint64_t layer = 0; layer < kTestLayers; ++layer) {
      registration.layers.push_back({0, layer * kLayerBytes});
    }
    registration.event = event;
    auto segment = DeviceSegment::Map(device_, registration, kTestLayers);
    EXPECT_TRUE(segment.ok()) << segment.status();
    return *std::move(segment);
  }

  // Block i in chunks first + 2 i and first + 2 i + 1, in falling order.
  CallerPages Places(uint8_t blocks, uint64_t first) const {
    CallerPages pages;
    pages.device = segment_.get();
    pages.session = this;
    PageLayout& layout = pages.pages.layout;
    layout.tokens_per_chunk = kChunkTokens;
    layout.head_stride = kRowBytes;
    layout.k_token_stride = layout.v_token_stride = kTokenBytes;
    layout.k_channel_stride = layout.v_channel_stride = 2;
    layout.v_offset = kHalfBytes;
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t chunk = first + 2 * i;
      pages.pages.places.push_back({{(chunk + 1) * kChunkBytes, chunk * kChunkBytes}, 0});
    }
    return pages;
  }

  // Copies between dense pages and the engine's chunks, row by row.
  template <typename CopyRow>
  void ForEachRow(const CallerPages& at, const CopyRow& copy) {
    size_t dense = 0;
    for (const BlockPlace& place : at.pages.places) {
      for (uint64_t layer = 0; layer < kTestLayers; ++layer) {
        for (uint64_t head = 0; head < kTestHeads; ++head) {
          for (uint64_t half : {uint64_t{0}, kHalfBytes}) {
            for (uint64_t token = 0; token < 64; ++token, dense += kRowBytes) {
              copy(dense, layer * kLayerBytes + place.chunk_offsets[token / kChunkTokens] + half +
                              token % kChunkTokens * kTokenBytes + head * kRowBytes);
            }
          }
        }
      }
    }
  }
  void WritePages(const CallerPages& at, const std::string& dense) {
    ForEachRow(at, [&](size_t from, uint64_t to) {
      std::memcpy(worker_.data() + to, dense.data() + from, kRowBytes);
    });
  }
  std::string ReadPages(const CallerPages& at) {
    std::string dense(at.pages.places.size() * kTestBlockBytes, '\0');
    ForEachRow(at, [&](size_t to, uint64_t from) {
      std::memcpy(dense.data() + to, worker_.data() + from, kRowBytes);
    });
    return dense;
  }

  // A store of blocks first.. whose pages lie in chunks from 0 on.
  StoreCall FromDevice(Profile profile, uint8_t first, uint8_t count) {
    StoreCall call = Batch(profile, first, count);
    call.source = Places(count, 0);
    WritePages(call.source, memory_);
    return call;
  }
  std::vector<BlockOutcome> StoreFromDevice(Profile profile, uint8_t first, uint8_t count) {
    auto outcomes = device_path_->StoreBlocks({}, *space_, FromDevice(profile, first, count));
    EXPECT_TRUE(outcomes.ok()) << outcomes.status();
    return *outcomes;
  }

  LeasedBlocks Leased(uint8_t count, Profile floor = Profile::kCompact) {
    LookupCall call;
    for (uint8_t i = 0; i < count; ++i) call.keys.push_back(Key(i));
    lease_.pins = device_path_->Lookup(*space_, call).pins;
    EXPECT_EQ(lease_.pins.size(), count);
    return {&lease_, 0, count, floor};
  }
  // Into chunks from 12 on.
  std::vector<BlockOutcome> LoadToDevice(uint8_t count) {
    auto outcomes = device_path_->Load({}, *space_, Leased(count), Places(count, 12));
    EXPECT_TRUE(outcomes.ok()) << outcomes.status();
    return *outcomes;
  }

  // Flips a bit of a slab on the device.
  void Damage(const Pin& pin) {
    auto queue = *device_.CreateQueue(true);
    std::byte* at = const_cast<std::byte*>(pin.primary().data()) + pin.primary().size() / 2;
    std::byte value{};
    ASSERT_TRUE(queue->CopyToHost(absl::MakeSpan(&value, 1), at).ok() && queue->Finish().ok());
    value ^= std::byte{4};
    ASSERT_TRUE(queue->CopyToDevice(at, absl::MakeConstSpan(&value, 1)).ok() &&
                queue->Finish().ok());
  }

  HostDevice device_;
  const Tiers* moving_ = nullptr;                // tiers_, also while it ends
  std::atomic<uint64_t> waits_before_moves_{0};  // slabs move once calls have waited so many times
  NamespaceRegistry device_registry_{{4, 4}, {set_}, ScalarBackend(), &device_};
  std::unique_ptr<DeviceScheduler> scheduler_ = *DeviceScheduler::Create(&device_, {});
  std::unique_ptr<PagePath> device_path_;
  HostWorkerMemory worker_;
  std::shared_ptr<const DeviceSegment> segment_;
  Lease lease_;
  std::string first_;
};

TEST_F(PagePathDeviceTest, Exact_ComesBackBitForBitInOtherChunks) {
  EXPECT_EQ(StoreFromDevice(Profile::kExact, 0, 3), std::vector<BlockOutcome>(3, kOk));
  EXPECT_FALSE(tiers_->Find(Slab(1)).on_host());
  EXPECT_EQ(LoadToDevice(3), std::vector<BlockOutcome>(3, kOk));
  EXPECT_EQ(ReadPages(Places(3, 12)), memory_);
  EXPECT_EQ(metrics_.Values()["fq_transport_blocks_total{operation=\"load\",transport=\"device\"}"],
            3);
}

TEST_F(PagePathDeviceTest, Compact_KeepsTheTailRuleAndTheBytesOfTheHostPath) {
  StoreFromDevice(Profile::kCompact, 0, 5);
  EXPECT_EQ(Held(5), "bbbrr");
  EXPECT_EQ(LoadToDevice(5), std::vector<BlockOutcome>(5, kOk));
  const InlineBlocks through_host = *device_path_->LoadInline({}, *space_, Leased(5));
  EXPECT_EQ(ReadPages(Places(5, 12)), through_host.payload);
  const InlineBlocks encoded = *device_path_->LoadEncoded({}, *space_, Leased(5));
  EXPECT_EQ(encoded.payload.size(), EncodedBytes(Leased(5)));
  EXPECT_TRUE(device_path_->VerifyBlock(*space_, lease_.pins[4]).ok());
}

TEST_F(PagePathDeviceTest, StoredTwice_ExistsInEitherTier) {
  StoreFromDevice(Profile::kExact, 0, 2);
  EXPECT_EQ(StoreFromDevice(Profile::kExact, 0, 3),
            (std::vector<BlockOutcome>{kExists, kExists, kOk}));
  StoreCall from_host = Batch(Profile::kExact, 0, 4);
  EXPECT_EQ(*device_path_->StoreBlocks({}, *space_, from_host),
            (std::vector<BlockOutcome>{kExists, kExists, kExists, kOk}));
  EXPECT_TRUE(tiers_->Find(Slab(3)).on_host());
}

TEST_F(PagePathDeviceTest, SlabsOfTheHostTier_AreCopiedUpAndFoundThere) {
  ASSERT_TRUE(device_path_->StoreBlocks({}, *space_, Batch(Profile::kNearLossless, 0, 3)).ok());
  EXPECT_TRUE(tiers_->Find(Slab(0)).on_host());
  const std::string expected = device_path_->LoadInline({}, *space_, Leased(3))->payload;
  EXPECT_EQ(LoadToDevice(3), std::vector<BlockOutcome>(3, kOk));
  EXPECT_EQ(ReadPages(Places(3, 12)), expected);
  EXPECT_FALSE(tiers_->Find(Slab(0)).on_host());
  EXPECT_EQ(tiers_->Stats().promoted_slabs, 3u);
}

TEST_F(PagePathDeviceTest, AnotherCallIsCopyingUp_ThisOneUsesRoomOfItsOwn) {
  ASSERT_TRUE(device_path_->StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 1)).ok());
  const LeasedBlocks blocks = Leased(1);
  auto other = tiers_->ReserveCopy(lease_.pins[0]);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(*device_path_->Load({}, *space_, blocks, Places(1, 12)),
            std::vector<BlockOutcome>(1, kOk));
  EXPECT_EQ(ReadPages(Places(1, 12)), memory_);
  EXPECT_TRUE(tiers_->Find(Slab(0)).on_host());
  EXPECT_EQ(tiers_->Stats().device.slabs, 0u);
}

TEST_F(PagePathDeviceTest, DamagedOnTheDevice_IsAMissDroppedAndCounted) {
  StoreFromDevice(Profile::kExact, 0, 3);
  Leased(3);
  Damage(lease_.pins[1]);
  EXPECT_EQ(LoadToDevice(3), (std::vector<BlockOutcome>{kOk, kMiss, kOk}));
  EXPECT_EQ(ReadPages(Places(3, 12)).substr(2 * kTestBlockBytes),
            memory_.substr(2 * kTestBlockBytes));
  EXPECT_EQ(Held(3), "e-e");
  EXPECT_EQ(metrics_.Values()["fq_blocks_missed_total{reason=\"check_failed\"}"], 1);
}

TEST_F(PagePathDeviceTest, GpuFails_NothingIsKeptAndTheHostTierGoesOn) {
  ASSERT_TRUE(device_path_->StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 1)).ok());
  StoreFromDevice(Profile::kExact, 1, 1);
  device_.FailNextFinish(absl::InternalError("launch failed"));
  const auto outcomes = device_path_->StoreBlocks({}, *space_, FromDevice(Profile::kExact, 2, 1));
  EXPECT_EQ(outcomes.status().code(), absl::StatusCode::kUnavailable) << outcomes.status();
  EXPECT_NE(outcomes.status().message().find("launch failed"), absl::string_view::npos);
  EXPECT_FALSE(tiers_->has_device());
  EXPECT_EQ(Held(3), "e--");
  EXPECT_EQ(device_path_->Load({}, *space_, Leased(1), Places(1, 12)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(device_path_->LoadInline({}, *space_, Leased(1))->outcomes,
            std::vector<BlockOutcome>(1, kOk));
}

TEST_F(PagePathDeviceTest, LeasedSlabsOfAFailedGpu_AreMisses) {
  StoreFromDevice(Profile::kExact, 0, 1);
  const LeasedBlocks blocks = Leased(1);
  device_.Lose();
  EXPECT_EQ(device_path_->LoadInline({}, *space_, blocks)->outcomes,
            std::vector<BlockOutcome>(1, kMiss));
}

TEST_F(PagePathDeviceTest, GivenUpBehindTheKernel_PublishesNothing) {
  CallContext given_up;
  int asked = 0;
  given_up.cancelled = [&] { return ++asked > 2; };  // at the start, before and behind the launch
  EXPECT_EQ(device_path_->StoreBlocks(given_up, *space_, FromDevice(Profile::kExact, 0, 2))
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(Held(2), "--");
  EXPECT_EQ(tiers_->Stats().device.reserved_slabs, 0u);
}

TEST_F(PagePathDeviceTest, StoresWaitForTheEnginesEvent) {
  HostWorkerEvent event;
  segment_ = MapSegment(event.handle());
  StoreCall call = FromDevice(Profile::kExact, 0, 1);
  WritePages(call.source, std::string(kTestBlockBytes, '\7'));  // what must not be stored
  event.Record();
  std::thread store([&] { EXPECT_TRUE(device_path_->StoreBlocks({}, *space_, call).ok()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  WritePages(call.source, memory_);
  event.Complete();
  store.join();
  EXPECT_EQ(device_path_->LoadInline({}, *space_, Leased(1))->payload, memory_);
}

TEST_F(PagePathDeviceTest, AnEventThatNeverComes_EndsWithTheCallAlone) {
  HostWorkerEvent event;
  const auto waiting = MapSegment(event.handle());
  event.Record();
  StoreCall call = FromDevice(Profile::kExact, 0, 1);
  call.source.device = waiting.get();
  CallContext context;
  context.deadline = SteadyNow() + std::chrono::milliseconds(60);
  std::thread stuck([&] {
    EXPECT_EQ(device_path_->StoreBlocks(context, *space_, call).status().code(),
              absl::StatusCode::kDeadlineExceeded);
  });
  EXPECT_EQ(StoreFromDevice(Profile::kExact, 1, 1), std::vector<BlockOutcome>(1, kOk));
  stuck.join();
  EXPECT_EQ(Held(2), "-e");
}

TEST_F(PagePathDeviceTest, SampledBlocks_AreMeasuredAsOnTheHost) {
  for (uint8_t i = 0; i < 40; ++i) {
    StoreFromDevice(Profile::kNearLossless, i, 1);
    WritePages(Places(1, 0), std::string(kTestBlockBytes, 'x'));  // the engine uses its pages again
    // One at a time: more at once are measured in any order, or lost where workers are busy.
    ASSERT_TRUE(
        Eventually([&] { return space_->quality->Of(Profile::kNearLossless).samples == i + 1u; }));
  }
  const ProfileQuality on_device = space_->quality->Of(Profile::kNearLossless);
  auto host_space =
      *registry_.Open("t", "host", DescriptorOfSet(), {0, kTestLayers, 0, kTestHeads});
  for (uint8_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(
        device_path_->StoreBlocks({}, *host_space, Batch(Profile::kNearLossless, i, 1)).ok());
  }
  EXPECT_DOUBLE_EQ(on_device.error_ratio,
                   host_space->quality->Of(Profile::kNearLossless).error_ratio);
}

TEST_F(PagePathDeviceTest, SlabsThatMovedToTheHost_ComeBackWhenALoadWantsThem) {
  UseTiers(8 << 20);
  for (uint8_t chain = 0; chain < 30; ++chain) {  // of four exact blocks, 0.5 MB
    StoreCall call = FromDevice(Profile::kExact, 0, 4);
    for (BlockKey& key : call.keys) key[5] = chain;
    ASSERT_EQ(*device_path_->StoreBlocks({}, *space_, call), std::vector<BlockOutcome>(4, kOk));
    if (chain == 0) first_ = memory_;
  }
  LookupCall lookup;
  for (uint8_t i = 0; i < 4; ++i) lookup.keys.push_back(Key(i));
  ASSERT_TRUE(Eventually([&] {
    const Pin pin = tiers_->Peek({space_->scope, lookup.keys[0]});
    return pin && pin.on_host();
  }));
  lease_.pins = device_path_->Lookup(*space_, lookup).pins;
  ASSERT_EQ(lease_.pins.size(), 4u);
  const auto outcomes =
      device_path_->Load({}, *space_, {&lease_, 0, 4, Profile::kCompact}, Places(4, 12));
  EXPECT_EQ(*outcomes, std::vector<BlockOutcome>(4, kOk));
  EXPECT_EQ(ReadPages(Places(4, 12)), first_);
}

TEST_F(PagePathDeviceTest, DeviceFull_StoresAndLoadsWaitForSlabsToMove) {
  UseTiers(4 << 20);
  ASSERT_TRUE(device_path_->StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 1)).ok());
  const LeasedBlocks on_host = Leased(1);
  waits_before_moves_ = 1;
  uint8_t i = 0;
  EXPECT_TRUE(Eventually([&] {
    EXPECT_NE(StoreFromDevice(Profile::kExact, ++i, 1)[0], kFull);
    return tiers_->Stats().waits >= 1;
  })) << "no store has waited";
  waits_before_moves_ = 2;
  EXPECT_TRUE(Eventually([&] {
    const SlabKey another{77, {++i}};  // of the same size: no slot is left for the load
    auto room = tiers_->Reserve(Tier::kDevice, another, {}, lease_.pins[0].primary().size(), 0);
    if (room.ok()) std::move(*room).Publish();
    EXPECT_TRUE(device_path_->Load({}, *space_, on_host, Places(1, 12)).ok());
    return tiers_->Stats().waits >= 2;
  })) << "no load has waited";
}

TEST_F(PagePathDeviceTest, DeviceFullOfLeasedSlabs_FullOnStoreMissOnLoad) {
  UseTiers(4 << 20);
  ASSERT_TRUE(device_path_->StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 1)).ok());
  const LeasedBlocks on_host = Leased(1);
  std::vector<Pin> pins;
  for (uint8_t i = 1;; ++i) {
    if (StoreFromDevice(Profile::kExact, i, 1)[0] == kFull) break;
    pins.push_back(tiers_->Find(Slab(i)));
    ASSERT_LT(i, 200) << "the device never filled up";
  }
  EXPECT_EQ(*device_path_->Load({}, *space_, on_host, Places(1, 12)),
            std::vector<BlockOutcome>(1, kMiss));
  EXPECT_EQ(metrics_.Values()["fq_blocks_missed_total{reason=\"no_room\"}"], 1);
}

}  // namespace
}  // namespace fq
