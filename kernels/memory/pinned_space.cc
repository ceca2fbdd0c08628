#include "kernels/memory/pinned_space.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>

namespace fq {
namespace {

#ifndef MADV_POPULATE_WRITE  // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif

// Whose granules are pinned ahead.
struct Reserved {
  std::byte* end = nullptr;
  std::byte* used = nullptr;  // end of the highest granule that was committed
  std::byte* next = nullptr;  // what is pinned ahead next
};

// MemorySpace's calls come from one thread at a time, which takes turns with the one that pins
// ahead. More than one would hold up the process's other CUDA calls: they wait for whoever pins.
class PinnedSpace final : public MemorySpace {
 public:
  explicit PinnedSpace(const PinnedOptions& options)
      : device_(options.device),
        most_(options.most_bytes / kPinnedGranuleBytes),
        most_ahead_(options.ahead_bytes / kPinnedGranuleBytes) {
    if (most_ahead_ > 0) ahead_thread_ = std::thread([this] { PinAheadUntilStopped(); });
  }

  ~PinnedSpace() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      used_more_.notify_all();
    }
    if (ahead_thread_.joinable()) ahead_thread_.join();
  }

  size_t granule_bytes() const override { return kPinnedGranuleBytes; }
  bool on_host() const override { return true; }

  // A granule more, of which what is not aligned goes back.
  std::byte* Reserve(size_t bytes) override {
    void* data = mmap(nullptr, bytes + kPinnedGranuleBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    auto* mapped = static_cast<std::byte*>(data);
    const size_t before =
        (kPinnedGranuleBytes - reinterpret_cast<uintptr_t>(data)) % kPinnedGranuleBytes;
    std::byte* begin = mapped + before;
    if (before > 0) munmap(mapped, before);
    munmap(begin + bytes, kPinnedGranuleBytes - before);
    madvise(begin, bytes, MADV_HUGEPAGE);  // quicker to fill and to pin
    const std::lock_guard lock(mutex_);
    reserved_[begin] = {begin + bytes, begin, begin};
    used_more_.notify_all();
    return begin;
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    {
      std::unique_lock lock(mutex_);
      reserved_.erase(begin);
      Unpin(begin, bytes, lock);
    }
    munmap(begin, bytes);
  }

  // Granule by granule: what is pinned in one call can only be taken back in one.
  bool Commit(std::byte* begin, size_t bytes) override {
    for (size_t at = 0; at < bytes; at += kPinnedGranuleBytes) {
      if (CommitGranule(begin + at)) continue;
      Decommit(begin, at);
      return false;
    }
    return true;
  }

  void Decommit(std::byte* begin, size_t bytes) override {
    if (bytes == 0) return;
    std::unique_lock lock(mutex_);
    Unpin(begin, bytes, lock);
    madvise(begin, bytes, MADV_DONTNEED);
  }

 private:
  enum class State : uint8_t { kPinning, kAhead, kCommitted };
  using Lock = std::unique_lock<std::mutex>;

  bool CommitGranule(std::byte* granule) {
    Lock lock(mutex_);
    Reserved& reserved = ReservedOf(granule);
    while (true) {
      const auto it = AwaitPinned(granule, lock);
      const bool ahead = it != granules_.end();
      if (ahead) {
        it->second = State::kCommitted;
        --ahead_;
      }
      reserved.used = std::max(reserved.used, granule + kPinnedGranuleBytes);
      reserved.next = std::max(reserved.next, reserved.used);
      used_more_.notify_all();
      if (ahead || (granules_.size() < most_ && Pin(granule, State::kCommitted, lock))) return true;
      if (ahead_ == 0) return false;
      UnpinOneAhead(lock);
    }
  }

  Reserved& ReservedOf(std::byte* granule) {
    return std::prev(reserved_.upper_bound(granule))->second;
  }

  // Once nobody is at it: the granule, or the end of granules_ when it is not pinned.
  std::map<std::byte*, State>::iterator AwaitPinned(std::byte* granule, Lock& lock) {
    auto it = granules_.find(granule);
    while (it != granules_.end() && it->second == State::kPinning) {
      pinned_.wait(lock);
      it = granules_.find(granule);
    }
    return it;
  }

  // The last one of some reservation; when the only one is still at it, waits for it.
  void UnpinOneAhead(Lock& lock) {
    const auto last = std::find_if(granules_.rbegin(), granules_.rend(), [](const auto& granule) {
      return granule.second == State::kAhead;
    });
    if (last == granules_.rend()) return pinned_.wait(lock);
    std::byte* const granule = last->first;
    ReservedOf(granule).next = granule;
    Unpin(granule, kPinnedGranuleBytes, lock);
    madvise(granule, kPinnedGranuleBytes, MADV_DONTNEED);
  }

  // Without the mutex, for it takes milliseconds. Memory is filled with zeros before: CUDA's calls
  // wait for one that pins, but not for that.
  bool Pin(std::byte* granule, State state, Lock& lock) {
    granules_[granule] = State::kPinning;
    lock.unlock();
    madvise(granule, kPinnedGranuleBytes, MADV_POPULATE_WRITE);
    const bool pinned =
        cudaSetDevice(device_) == cudaSuccess &&
        cudaHostRegister(granule, kPinnedGranuleBytes, cudaHostRegisterPortable) == cudaSuccess;
    if (!pinned) cudaGetLastError();
    lock.lock();
    if (pinned) {
      granules_[granule] = state;
    } else {
      granules_.erase(granule);
      madvise(granule, kPinnedGranuleBytes, MADV_DONTNEED);
    }
    pinned_.notify_all();
    return pinned;
  }

  void Unpin(std::byte* begin, size_t bytes, Lock& lock) {
    for (size_t at = 0; at < bytes; at += kPinnedGranuleBytes) {
      const auto it = AwaitPinned(begin + at, lock);
      if (it == granules_.end()) continue;
      cudaSetDevice(device_);
      if (cudaHostUnregister(it->first) != cudaSuccess) cudaGetLastError();
      if (it->second == State::kAhead) --ahead_;
      granules_.erase(it);
    }
  }

  void PinAheadUntilStopped() {
    Lock lock(mutex_);
    while (!stopping_) {
      Reserved* const reserved = WhereToPinAhead();
      if (reserved == nullptr) {
        used_more_.wait(lock);
        continue;
      }
      std::byte* const granule = reserved->next;
      reserved->next += kPinnedGranuleBytes;
      ++ahead_;
      if (!Pin(granule, State::kAhead, lock)) {
        --ahead_;
        return;  // the system pins no more; what is needed is still tried
      }
    }
  }

  // Where the least is ready; null: enough is. What is not used may never be, and would be missing
  // elsewhere.
  Reserved* WhereToPinAhead() {
    if (ahead_ >= most_ahead_ || granules_.size() >= most_) return nullptr;
    Reserved* least = nullptr;
    for (auto& [begin, reserved] : reserved_) {
      while (granules_.count(reserved.next) > 0) reserved.next += kPinnedGranuleBytes;
      const size_t enough = std::max<size_t>({kPinnedGranuleBytes, most_ / 64 * kPinnedGranuleBytes,
                                              4 * size_t(reserved.used - begin)});
      if (reserved.next >= reserved.end || size_t(reserved.next - reserved.used) >= enough)
        continue;
      if (least == nullptr || reserved.next - reserved.used < least->next - least->used) {
        least = &reserved;
      }
    }
    return least;
  }

  const int device_;
  const size_t most_, most_ahead_;  // granules
  std::mutex mutex_;                // of all below
  std::condition_variable used_more_, pinned_;
  std::map<std::byte*, Reserved> reserved_;  // by begin
  std::map<std::byte*, State> granules_;     // that are pinned, or being pinned
  size_t ahead_ = 0;                         // of those, by the thread and not committed
  bool stopping_ = false;
  std::thread ahead_thread_;
};

}  // namespace

std::unique_ptr<MemorySpace> CreatePinnedSpace(const PinnedOptions& options) {
  return std::make_unique<PinnedSpace>(options);
}

}  // namespace fq
