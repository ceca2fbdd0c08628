// Over a space that ends the process when a granule is committed twice, or taken back twice, or
// left behind; pinned_space_test and vmm_space_test are the same over CUDA's.
#include "kernels/memory/ahead_space.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "tests/testing/strict_space.h"

namespace fq {
namespace {

constexpr size_t kGranule = 4096;

// A test's hand on the commits of a space.
class Gate {
 public:
  // A commit that begins at `granule` waits until Release.
  void Hold(const std::byte* granule) {
    const std::lock_guard lock(mutex_);
    held_.insert(granule);
  }
  void Release(const std::byte* granule) {
    const std::lock_guard lock(mutex_);
    held_.erase(granule);
    changed_.notify_all();
  }

  // Until a commit waits at `granule`.
  void AwaitHeld(const std::byte* granule) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.count(granule) > 0; });
  }

  // Commits of granules from `granule` on fail; null: none does.
  void FailFrom(const std::byte* granule) {
    const std::lock_guard lock(mutex_);
    failing_from_ = granule;
  }

  // How many were begun.
  int commits() {
    const std::lock_guard lock(mutex_);
    return commits_;
  }

  // What a commit does first; false: it fails.
  bool Pass(const std::byte* begin, size_t bytes) {
    std::unique_lock lock(mutex_);
    ++commits_;
    waiting_.insert(begin);
    changed_.notify_all();
    changed_.wait(lock, [&] { return held_.count(begin) == 0; });
    waiting_.erase(begin);
    return failing_from_ == nullptr || begin + bytes <= failing_from_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<const std::byte*> held_, waiting_;
  const std::byte* failing_from_ = nullptr;
  int commits_ = 0;
};

// StrictSpace behind a gate; stays with the test when the space over it is gone.
class GatedSpace final : public MemorySpace {
 public:
  GatedSpace(StrictSpace& space, Gate& gate) : space_(space), gate_(gate) {}
  size_t granule_bytes() const override { return space_.granule_bytes(); }
  bool on_host() const override { return space_.on_host(); }
  bool keeps_idle() const override { return space_.keeps_idle(); }
  std::byte* Reserve(size_t bytes) override { return space_.Reserve(bytes); }
  void Unreserve(std::byte* begin, size_t bytes) override { space_.Unreserve(begin, bytes); }
  void Decommit(std::byte* begin, size_t bytes) override { space_.Decommit(begin, bytes); }
  bool Commit(std::byte* begin, size_t bytes) override {
    return gate_.Pass(begin, bytes) && space_.Commit(begin, bytes);
  }

 private:
  StrictSpace& space_;
  Gate& gate_;
};

class AheadSpaceTest : public testing::Test {
 protected:
  // The space has `granules`, and says that it has `most`.
  void Create(size_t granules, size_t most, size_t ahead) {
    strict_.emplace(kGranule, granules * kGranule);
    space_ = CreateAheadSpace(std::make_unique<GatedSpace>(*strict_, gate_),
                              {most * kGranule, ahead * kGranule});
  }
  void Create(size_t granules, size_t ahead) { Create(granules, granules, ahead); }

  // Once the space has so many granules committed; a test that waits for ever has failed.
  void AwaitCommitted(size_t granules) {
    while (strict_->committed_bytes() != granules * kGranule) std::this_thread::yield();
  }

  // What the thread would have committed by now, had it wanted to.
  void ExpectNoMoreThan(size_t granules) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(strict_->committed_bytes(), granules * kGranule);
  }

  Gate gate_;
  std::optional<StrictSpace> strict_;
  std::unique_ptr<MemorySpace> space_;
};

TEST_F(AheadSpaceTest, IsTheSpaceBelow) {
  Create(4, 0);
  EXPECT_EQ(space_->granule_bytes(), kGranule);
  EXPECT_TRUE(space_->on_host());
  EXPECT_TRUE(space_->keeps_idle());
  strict_->set_keeps_idle(false);
  EXPECT_FALSE(space_->keeps_idle());
}

TEST_F(AheadSpaceTest, NothingAhead_CommitsWhatIsAskedFor) {
  Create(4, 0);
  std::byte* begin = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(begin + kGranule, 3 * kGranule));
  EXPECT_EQ(gate_.commits(), 1);  // not one for each granule
  ExpectNoMoreThan(3);
  EXPECT_FALSE(space_->Commit(begin + 4 * kGranule, 2 * kGranule));
  EXPECT_TRUE(space_->Commit(begin + 4 * kGranule, kGranule));
  space_->Decommit(begin + 2 * kGranule, 2 * kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 2 * kGranule);
  space_->Unreserve(begin, 8 * kGranule);
  EXPECT_EQ(strict_->reservations(), 0u);
}

TEST_F(AheadSpaceTest, FourTimesWhatIsUsed) {
  Create(16, 12);
  std::byte* begin = space_->Reserve(16 * kGranule);
  AwaitCommitted(1);
  ExpectNoMoreThan(1);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  AwaitCommitted(5);
  ExpectNoMoreThan(5);
  EXPECT_EQ(gate_.commits(), 5);  // each once, by the thread
  // Past what is ahead.
  ASSERT_TRUE(space_->Commit(begin + 8 * kGranule, kGranule));
  AwaitCommitted(13);
  ASSERT_TRUE(space_->Commit(begin + kGranule, 7 * kGranule));
  space_->Unreserve(begin, 16 * kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 0u);
}

TEST_F(AheadSpaceTest, AtLeastA64thOfAll) {
  Create(256, 256);
  std::byte* begin = space_->Reserve(256 * kGranule);
  AwaitCommitted(4);
  ExpectNoMoreThan(4);
  space_->Unreserve(begin, 256 * kGranule);
}

TEST_F(AheadSpaceTest, BoundedInAllReservations) {
  Create(64, 4);
  std::byte* first = space_->Reserve(16 * kGranule);
  ASSERT_TRUE(space_->Commit(first, 2 * kGranule));
  AwaitCommitted(6);
  std::byte* second = space_->Reserve(8 * kGranule);
  ExpectNoMoreThan(6);
  ASSERT_TRUE(space_->Commit(first + 2 * kGranule, 6 * kGranule));
  AwaitCommitted(12);
  ExpectNoMoreThan(12);
  ASSERT_TRUE(space_->Commit(second, kGranule));
  space_->Unreserve(first, 16 * kGranule);
  space_->Unreserve(second, 8 * kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 0u);
}

// Of two reservations that have too little ahead, the one that has less comes first.
TEST_F(AheadSpaceTest, GoesWhereTheLeastIsReady) {
  Create(64, 4);
  std::byte* const one = space_->Reserve(16 * kGranule);
  std::byte* const two = space_->Reserve(16 * kGranule);
  std::byte* const low = std::min(one, two);
  std::byte* const high = std::max(one, two);
  AwaitCommitted(2);
  ASSERT_TRUE(space_->Commit(low, kGranule));
  AwaitCommitted(5);  // three of low's four, and one of high's
  gate_.Hold(high + kGranule);
  ASSERT_TRUE(space_->Commit(high, kGranule));
  gate_.AwaitHeld(high + kGranule);
  gate_.Release(high + kGranule);
  space_->Unreserve(low, 16 * kGranule);
  space_->Unreserve(high, 16 * kGranule);
}

TEST_F(AheadSpaceTest, EndsWithTheReservation) {
  Create(16, 16);
  std::byte* begin = space_->Reserve(3 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  AwaitCommitted(3);
  ExpectNoMoreThan(3);
  space_->Unreserve(begin, 3 * kGranule);
}

// Who asks for what the thread is at gets that, and does not commit it again.
TEST_F(AheadSpaceTest, Commit_OfWhatIsBeingMade_WaitsForIt) {
  Create(8, 1);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(begin + kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  gate_.AwaitHeld(begin + kGranule);
  std::atomic<bool> committed{false};
  std::thread caller([&] { committed = space_->Commit(begin + kGranule, 3 * kGranule); });
  ExpectNoMoreThan(1);
  EXPECT_FALSE(committed);
  gate_.Release(begin + kGranule);
  caller.join();
  EXPECT_TRUE(committed);
  begin[kGranule] = begin[4 * kGranule - 1] = std::byte{1};
  space_->Unreserve(begin, 8 * kGranule);
}

// What another wants does not wait for the granule that the thread is at.
TEST_F(AheadSpaceTest, Commit_OfOthers_GoesOnMeanwhile) {
  Create(8, 1);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(begin + kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  gate_.AwaitHeld(begin + kGranule);
  ASSERT_TRUE(space_->Commit(begin + 4 * kGranule, 2 * kGranule));
  space_->Decommit(begin + 4 * kGranule, kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 2 * kGranule);
  gate_.Release(begin + kGranule);
  space_->Unreserve(begin, 8 * kGranule);
}

// Nor does the thread wait for others' commits.
TEST_F(AheadSpaceTest, Thread_GoesOnWhileOthersCommit) {
  Create(8, 3);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(begin + kGranule);
  gate_.Hold(begin + 2 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  gate_.AwaitHeld(begin + kGranule);
  std::thread caller([&] { EXPECT_TRUE(space_->Commit(begin + 2 * kGranule, kGranule)); });
  gate_.AwaitHeld(begin + 2 * kGranule);
  gate_.Release(begin + kGranule);
  AwaitCommitted(4);  // that one and two behind the caller's
  gate_.Release(begin + 2 * kGranule);
  caller.join();
  space_->Unreserve(begin, 8 * kGranule);
}

// What is ahead for one size of slabs must not be missing for another.
TEST_F(AheadSpaceTest, GivesWayToWhatIsCommitted) {
  Create(4, 4);
  std::byte* first = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(first, 2 * kGranule));
  AwaitCommitted(4);
  std::byte* second = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(second, 2 * kGranule));
  EXPECT_FALSE(space_->Commit(second + 2 * kGranule, kGranule));  // four are committed
  space_->Decommit(second, kGranule);
  EXPECT_TRUE(space_->Commit(first + 2 * kGranule, kGranule));
  space_->Unreserve(first, 8 * kGranule);
  space_->Unreserve(second, 8 * kGranule);
}

// The last granule there is is being made: it is waited for and taken.
TEST_F(AheadSpaceTest, GivesWay_WhenItIsMade) {
  Create(2, 2);
  std::byte* const first = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(first + kGranule);
  ASSERT_TRUE(space_->Commit(first, kGranule));
  gate_.AwaitHeld(first + kGranule);
  std::byte* const second = space_->Reserve(8 * kGranule);
  std::atomic<bool> committed{false};
  std::thread caller([&] { committed = space_->Commit(second, kGranule); });
  ExpectNoMoreThan(1);
  EXPECT_FALSE(committed);
  gate_.Release(first + kGranule);
  caller.join();
  EXPECT_TRUE(committed);
  second[0] = std::byte{1};
  EXPECT_FALSE(space_->Commit(second + kGranule, kGranule));
  space_->Unreserve(first, 8 * kGranule);
  space_->Unreserve(second, 8 * kGranule);
}

// Some of a range is ahead, some is not, and there is too little for the rest.
TEST_F(AheadSpaceTest, Commit_MoreThanThereIs_ChangesNothing) {
  Create(6, 2);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  AwaitCommitted(3);
  EXPECT_FALSE(space_->Commit(begin + kGranule, 6 * kGranule));
  EXPECT_EQ(strict_->committed_bytes(), kGranule);
  EXPECT_TRUE(space_->Commit(begin + kGranule, 5 * kGranule));
  begin[6 * kGranule - 1] = std::byte{1};
  space_->Unreserve(begin, 8 * kGranule);
}

// The thread's commit fails: it ends, and commits that can succeed do.
TEST_F(AheadSpaceTest, ThreadFails_NothingElseDoes) {
  Create(8, 4);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.FailFrom(begin + kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  while (gate_.commits() < 2) std::this_thread::yield();  // the thread's second
  gate_.FailFrom(nullptr);
  ASSERT_TRUE(space_->Commit(begin + kGranule, 2 * kGranule));
  ExpectNoMoreThan(3);
  ASSERT_TRUE(space_->Commit(begin + 3 * kGranule, 5 * kGranule));
  space_->Unreserve(begin, 8 * kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 0u);
}

// A commit fails that should have had memory: what is ahead goes back for it, and none is from now
// on.
TEST_F(AheadSpaceTest, CallerFails_ThreadEnds) {
  Create(8, 1);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.FailFrom(begin);
  EXPECT_FALSE(space_->Commit(begin + 4 * kGranule, kGranule));
  EXPECT_EQ(strict_->committed_bytes(), 0u);
  gate_.FailFrom(nullptr);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  ExpectNoMoreThan(1);
  space_->Unreserve(begin, 8 * kGranule);
}

// A full space is not one that fails: when memory comes back the thread goes on.
TEST_F(AheadSpaceTest, Full_GoesAheadAgainLater) {
  Create(4, 4);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, 4 * kGranule));
  ExpectNoMoreThan(4);
  space_->Decommit(begin, 3 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  AwaitCommitted(4);
  const int commits = gate_.commits();
  ASSERT_TRUE(space_->Commit(begin + 4 * kGranule, 2 * kGranule));
  EXPECT_EQ(gate_.commits(), commits);
  space_->Unreserve(begin, 8 * kGranule);
}

TEST_F(AheadSpaceTest, SpaceHasLessThanItSays_NothingIsMissing) {
  Create(3, 8, 8);
  std::byte* first = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(first, kGranule));
  AwaitCommitted(3);
  std::byte* second = space_->Reserve(8 * kGranule);
  EXPECT_TRUE(space_->Commit(second, 2 * kGranule));
  EXPECT_FALSE(space_->Commit(second + 2 * kGranule, kGranule));
  space_->Unreserve(first, 8 * kGranule);
  EXPECT_TRUE(space_->Commit(second + 2 * kGranule, kGranule));
  space_->Unreserve(second, 8 * kGranule);
}

TEST_F(AheadSpaceTest, Unreserve_WhileOneIsMade_TakesThatBackToo) {
  Create(8, 8);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(begin + 2 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  gate_.AwaitHeld(begin + 2 * kGranule);
  std::thread caller([&] { space_->Unreserve(begin, 8 * kGranule); });
  ExpectNoMoreThan(2);
  gate_.Release(begin + 2 * kGranule);
  caller.join();
  EXPECT_EQ(strict_->committed_bytes(), 0u);
  EXPECT_EQ(strict_->reservations(), 0u);
}

TEST_F(AheadSpaceTest, DestroyedWhileOneIsMade_EndsBehindIt) {
  Create(8, 8);
  std::byte* const begin = space_->Reserve(8 * kGranule);
  AwaitCommitted(1);
  gate_.Hold(begin + 2 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  gate_.AwaitHeld(begin + 2 * kGranule);
  std::thread caller([&] { space_.reset(); });
  ExpectNoMoreThan(2);
  gate_.Release(begin + 2 * kGranule);
  caller.join();
  EXPECT_EQ(strict_->committed_bytes(), 3 * kGranule);  // and none after that
  strict_->Unreserve(begin, 8 * kGranule);
}

// Ranges come and go in several reservations while the thread works: what there is room for is
// always had, and holds its own bytes. FQ_TEST_SEED repeats a run.
TEST_F(AheadSpaceTest, AnyOrder_NothingIsMissingOrAnothers) {
  const char* given = std::getenv("FQ_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE("FQ_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  constexpr size_t kMost = 8, kReserved = 6;
  Create(kMost, 4);
  std::map<std::byte*, std::map<size_t, std::byte>> held;  // by reservation: granule, its value
  size_t count = 0;
  for (int step = 0; step < 20000; ++step) {
    if (held.size() < 3) held[space_->Reserve(kReserved * kGranule)];
    const auto it = std::next(held.begin(), static_cast<long>(random() % held.size()));
    auto& [begin, granules] = *it;
    const size_t granule = random() % kReserved;
    std::byte* const at = begin + granule * kGranule;
    if (random() % 50 == 0) {
      space_->Unreserve(begin, kReserved * kGranule);
      count -= granules.size();
      held.erase(it);
    } else if (granules.count(granule) == 0) {
      size_t most = 1;
      while (granule + most < kReserved && granules.count(granule + most) == 0) ++most;
      const size_t asked = 1 + random() % most;
      ASSERT_EQ(space_->Commit(at, asked * kGranule), count + asked <= kMost) << step;
      if (count + asked > kMost) continue;
      for (size_t i = 0; i < asked; ++i) {
        granules[granule + i] = at[i * kGranule] = static_cast<std::byte>(random());
      }
      count += asked;
    } else {
      ASSERT_EQ(*at, granules[granule]) << step;
      space_->Decommit(at, kGranule);
      granules.erase(granule);
      --count;
    }
  }
  for (auto& [begin, granules] : held) space_->Unreserve(begin, kReserved * kGranule);
  EXPECT_EQ(strict_->committed_bytes(), 0u);
}

}  // namespace
}  // namespace fq
