// A tier from many threads at once, far over its capacity, with payloads that describe themselves:
// whatever is found must be one whole version of what was asked for, for as long as it is pinned.
// Meant for ThreadSanitizer and AddressSanitizer too. FQ_TEST_SEED repeats a run.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/conformance/tier_suite.h"

namespace fq::conformance {

struct StressShape {
  uint32_t threads = 4;
  uint32_t operations_per_thread = 20000;
  uint32_t keys = 96;      // about three times what fits
  uint32_t pins_held = 4;  // per thread
  uint64_t capacity_bytes = 512 << 10;
  size_t scale = 1;  // of the sizes of slabs
};

// Slabs come in three sizes, so that sizes compete for memory.
inline size_t StressBytes(const StressShape& shape, uint32_t slab) {
  return (4000 + (slab % 3) * 9000) * shape.scale;
}

inline uint64_t StressSeed() {
  const char* given = std::getenv("FQ_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
}

template <typename Store>
class StressThread {
 public:
  StressThread(Store& store, const StressShape& shape, uint64_t seed)
      : store_(store), shape_(shape), random_(seed) {}

  void Run() {
    for (uint32_t i = 0; i < shape_.operations_per_thread && error_.empty(); ++i) Step();
    CheckPins();
    pins_.clear();
  }
  const std::string& error() const { return error_; }

 private:
  using PinType = decltype(std::declval<Store&>().Find(SlabKey{}));

  void Step() {
    const uint32_t slab = static_cast<uint32_t>(random_() % shape_.keys);
    switch (random_() % 16) {
      case 0:
        store_.Erase(KeyOf(slab));
        break;
      case 1:
        store_.DropRefinement(KeyOf(slab));
        break;
      case 2:
        (void)store_.Reserve(KeyOf(slab), SlabTag{}, StressBytes(shape_, slab), 0);
        break;
      case 3:
        CheckPins();
        break;
      case 4:
      case 5:
      case 6:
      case 7:
      case 8:
        Put(slab);
        break;
      default:
        Get(slab);
    }
  }

  void Put(uint32_t slab) {
    auto room = store_.Reserve(KeyOf(slab), SlabTag{slab, 0, 0, 64}, StressBytes(shape_, slab),
                               random_() % 2 == 0 ? 2000 * shape_.scale : 0);
    if (!room.ok()) return;
    const auto version = static_cast<uint16_t>(random_());
    Describe({slab, version}, room->primary());
    Describe({slab, version}, room->refinement());
    std::move(*room).Publish();
  }

  void Get(uint32_t slab) {
    PinType pin = store_.Find(KeyOf(slab));
    if (!pin) return;
    Check(pin);
    pins_.push_back(std::move(pin));
    if (pins_.size() > shape_.pins_held) pins_.pop_front();
  }

  void CheckPins() {
    for (const PinType& pin : pins_) Check(pin);
  }

  void Check(const PinType& pin) {
    const Description d{pin.tag().block_index, VersionOf(pin.primary())};
    if (!(pin.key() == KeyOf(d.slab))) error_ = "the tag is of another key";
    if (pin.primary().size() != StressBytes(shape_, d.slab)) error_ = "another size";
    for (auto bytes : {pin.primary(), pin.refinement()}) {
      if (std::string found = Mismatch(d, bytes); !found.empty()) error_ = found;
    }
  }

  Store& store_;
  const StressShape shape_;
  std::mt19937_64 random_;
  std::deque<PinType> pins_;
  std::string error_;
};

// Runs the threads beside one that keeps checking the books; then everything must be free again.
template <typename Store>
void StressTier(Store& store, const StressShape& shape) {
  const uint64_t seed = StressSeed();
  SCOPED_TRACE(absl::StrCat("FQ_TEST_SEED=", seed));
  std::deque<StressThread<Store>> work;
  for (uint32_t i = 0; i < shape.threads; ++i) work.emplace_back(store, shape, seed + i);
  std::atomic<bool> done{false};
  std::thread auditor([&] {
    while (!done) {
      const absl::Status status = store.CheckInvariants();
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_LE(store.Stats().used_bytes, shape.capacity_bytes);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> threads;
  for (auto& one : work) threads.emplace_back([&one] { one.Run(); });
  for (auto& thread : threads) thread.join();
  done = true;
  auditor.join();
  for (const auto& one : work) EXPECT_EQ(one.error(), "");
  EXPECT_GT(store.Stats().evicted_slabs, 0u);
  EXPECT_EQ(store.Stats().pinned_slabs, 0u);
  EXPECT_EQ(store.Stats().reserved_slabs, 0u);
  for (uint32_t slab = 0; slab < shape.keys; ++slab) store.Erase(KeyOf(slab));
  EXPECT_EQ(store.Stats().used_bytes, 0u);
  EXPECT_TRUE(store.CheckInvariants().ok()) << store.CheckInvariants();
}

}  // namespace fq::conformance
