#include "kernels/memory/ahead_space.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/base/check.h"

namespace fq {
namespace {

// What is known of a reservation; its begin is the key.
struct Reserved {
  std::byte* end = nullptr;
  std::byte* used = nullptr;  // end of the highest granule that was asked for and had
  std::byte* next = nullptr;  // what the thread commits next
};

// One caller and the thread share the state below. Neither holds the mutex while it commits, or the
// caller would wait for granules that it does not want.
class AheadSpace final : public MemorySpace {
 public:
  AheadSpace(std::unique_ptr<MemorySpace> space, const AheadOptions& options)
      : space_(std::move(space)),
        granule_bytes_(space_->granule_bytes()),
        most_(options.most_bytes / granule_bytes_),
        most_ahead_(options.ahead_bytes / granule_bytes_),
        thread_([this] { GoAheadUntilStopped(); }) {}

  ~AheadSpace() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      wanted_.notify_all();
    }
    thread_.join();
  }

  size_t granule_bytes() const override { return granule_bytes_; }
  bool on_host() const override { return space_->on_host(); }
  bool keeps_idle() const override { return space_->keeps_idle(); }

  std::byte* Reserve(size_t bytes) override;
  void Unreserve(std::byte* begin, size_t bytes) override;
  bool Commit(std::byte* begin, size_t bytes) override;
  void Decommit(std::byte* begin, size_t bytes) override;

 private:
  enum class State : uint8_t { kMaking, kAhead, kCommitted };
  using Lock = std::unique_lock<std::mutex>;

  // All with the mutex locked; those that take the lock may let it go meanwhile.
  Reserved& ReservedOf(std::byte* granule) {
    return std::prev(reserved_.upper_bound(granule))->second;
  }
  void AwaitMade(std::byte* begin, std::byte* end, Lock& lock);
  void TakeAhead(std::byte* begin, std::byte* end);
  bool CommitMissing(std::byte* begin, std::byte* end, Lock& lock);
  bool CommitRun(std::byte* begin, std::byte* end, Lock& lock);
  bool MakeRoom(size_t granules, Lock& lock);
  bool GiveOneUp(Lock& lock);
  void Forget(std::byte* begin, std::byte* end);
  Reserved* WhereToGoAhead();
  void GoAheadUntilStopped();

  const std::unique_ptr<MemorySpace> space_;
  const size_t granule_bytes_;
  const size_t most_, most_ahead_;  // granules
  std::mutex mutex_;                // of all below
  std::condition_variable wanted_, made_;
  std::map<std::byte*, Reserved> reserved_;  // by begin
  std::map<std::byte*, State> granules_;     // that have memory, or get it
  size_t ahead_ = 0;                         // of those, ahead or made by the thread
  bool stopping_ = false;                    // the thread
  std::thread thread_;                       // last: needs all of the above
};

std::byte* AheadSpace::Reserve(size_t bytes) {
  std::byte* const begin = space_->Reserve(bytes);
  if (begin == nullptr) return nullptr;
  const std::lock_guard lock(mutex_);
  reserved_[begin] = {begin + bytes, begin, begin};
  wanted_.notify_all();
  return begin;
}

// Here and in Decommit the mutex stays locked until the memory is back: the thread, which counts,
// would take it for free before.
void AheadSpace::Unreserve(std::byte* begin, size_t bytes) {
  Lock lock(mutex_);
  reserved_.erase(begin);
  AwaitMade(begin, begin + bytes, lock);
  space_->Unreserve(begin, bytes);
  Forget(begin, begin + bytes);
}

bool AheadSpace::Commit(std::byte* begin, size_t bytes) {
  Lock lock(mutex_);
  std::byte* const end = begin + bytes;
  Reserved& reserved = ReservedOf(begin);
  reserved.next = std::max(reserved.next, end);  // the thread begins nothing here any more
  AwaitMade(begin, end, lock);
  TakeAhead(begin, end);
  if (!CommitMissing(begin, end, lock)) return false;
  reserved.used = std::max(reserved.used, end);
  wanted_.notify_all();
  return true;
}

void AheadSpace::Decommit(std::byte* begin, size_t bytes) {
  const std::lock_guard lock(mutex_);
  space_->Decommit(begin, bytes);
  Forget(begin, begin + bytes);
}

// Until the thread is at no granule of the range.
void AheadSpace::AwaitMade(std::byte* begin, std::byte* end, Lock& lock) {
  made_.wait(lock, [&] {
    return std::none_of(granules_.lower_bound(begin), granules_.lower_bound(end),
                        [](const auto& granule) { return granule.second == State::kMaking; });
  });
}

void AheadSpace::TakeAhead(std::byte* begin, std::byte* end) {
  for (auto it = granules_.lower_bound(begin); it != granules_.end() && it->first < end; ++it) {
    FQ_CHECK(it->second == State::kAhead);  // the caller has none of it
    it->second = State::kCommitted;
    --ahead_;
  }
}

// Of the range, which has what was ahead: in as few calls as there are holes. When it fails the
// whole range goes back.
bool AheadSpace::CommitMissing(std::byte* begin, std::byte* end, Lock& lock) {
  for (std::byte* at = begin; at < end;) {
    const auto next = granules_.lower_bound(at);
    std::byte* const hole_end = next == granules_.end() ? end : std::min(next->first, end);
    if (at < hole_end && !CommitRun(at, hole_end, lock)) {
      for (auto it = granules_.lower_bound(begin); it != granules_.end() && it->first < end; ++it) {
        space_->Decommit(it->first, granule_bytes_);
      }
      Forget(begin, end);
      return false;
    }
    at = hole_end + granule_bytes_;
  }
  return true;
}

// Of a range where nothing is. The space may have less than was said: then what is ahead of it is
// too much.
bool AheadSpace::CommitRun(std::byte* begin, std::byte* end, Lock& lock) {
  const auto bytes = static_cast<size_t>(end - begin);
  while (MakeRoom(bytes / granule_bytes_, lock)) {
    for (std::byte* at = begin; at < end; at += granule_bytes_) granules_[at] = State::kCommitted;
    lock.unlock();
    const bool committed = space_->Commit(begin, bytes);
    lock.lock();
    if (committed) return true;
    Forget(begin, end);
    stopping_ = true;
    if (!GiveOneUp(lock)) return false;
  }
  return false;
}

bool AheadSpace::MakeRoom(size_t granules, Lock& lock) {
  while (granules_.size() + granules > most_) {
    if (!GiveOneUp(lock)) return false;
  }
  return true;
}

// The last one of some reservation; when the only one is being made, waits for it. False: nothing
// is ahead.
bool AheadSpace::GiveOneUp(Lock& lock) {
  if (ahead_ == 0) return false;
  const auto last = std::find_if(granules_.rbegin(), granules_.rend(), [](const auto& granule) {
    return granule.second == State::kAhead;
  });
  if (last == granules_.rend()) {
    made_.wait(lock);
    return true;
  }
  std::byte* const granule = last->first;
  Reserved& reserved = ReservedOf(granule);
  reserved.next = std::max(reserved.used, granule);
  space_->Decommit(granule, granule_bytes_);
  Forget(granule, granule + granule_bytes_);
  return true;
}

// Nothing of the range is being made.
void AheadSpace::Forget(std::byte* begin, std::byte* end) {
  const auto first = granules_.lower_bound(begin), last = granules_.lower_bound(end);
  ahead_ -= static_cast<size_t>(std::count_if(
      first, last, [](const auto& granule) { return granule.second == State::kAhead; }));
  granules_.erase(first, last);
}

// Where the least is ready; null: enough is. What is not used may never be, and would be missing
// elsewhere.
Reserved* AheadSpace::WhereToGoAhead() {
  if (ahead_ >= most_ahead_ || granules_.size() >= most_) return nullptr;
  Reserved* least = nullptr;
  for (auto& [begin, reserved] : reserved_) {
    while (granules_.count(reserved.next) > 0) reserved.next += granule_bytes_;
    const size_t enough = std::max<size_t>({granule_bytes_, most_ / 64 * granule_bytes_,
                                            4 * static_cast<size_t>(reserved.used - begin)});
    const auto ready = static_cast<size_t>(reserved.next - reserved.used);
    if (reserved.next >= reserved.end || ready >= enough) continue;
    if (least == nullptr || reserved.next - reserved.used < least->next - least->used) {
      least = &reserved;
    }
  }
  return least;
}

void AheadSpace::GoAheadUntilStopped() {
  Lock lock(mutex_);
  while (!stopping_) {
    Reserved* const reserved = WhereToGoAhead();
    if (reserved == nullptr) {
      wanted_.wait(lock);
      continue;
    }
    std::byte* const granule = reserved->next;
    reserved->next += granule_bytes_;
    granules_[granule] = State::kMaking;
    ++ahead_;
    lock.unlock();
    const bool made = space_->Commit(granule, granule_bytes_);
    lock.lock();
    granules_[granule] = State::kAhead;
    if (!made) {
      Forget(granule, granule + granule_bytes_);
      stopping_ = true;
    }
    made_.notify_all();
  }
}

}  // namespace

std::unique_ptr<MemorySpace> CreateAheadSpace(std::unique_ptr<MemorySpace> space,
                                              const AheadOptions& options) {
  return std::make_unique<AheadSpace>(std::move(space), options);
}

}  // namespace fq
