// Memory for tests of the store: large granules, a hard limit, and whoever touches what is not
// committed is killed. Ends the process when it is used against memory_space.h. Thread-safe.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>

#include "kernels/base/check.h"
#include "kernels/memory/memory_space.h"

namespace fq {

class StrictSpace final : public MemorySpace {
 public:
  StrictSpace(size_t granule_bytes, uint64_t limit_bytes)
      : granule_bytes_(granule_bytes), limit_granules_(limit_bytes / granule_bytes) {}
  ~StrictSpace() override { FQ_CHECK(reserved_.empty() && committed_.empty()); }

  size_t granule_bytes() const override { return granule_bytes_; }
  bool on_host() const override { return true; }
  bool keeps_idle() const override { return keeps_idle_; }
  void set_keeps_idle(bool keeps_idle) { keeps_idle_ = keeps_idle; }
  size_t reservations() const {
    const std::lock_guard lock(mutex_);
    return reserved_.size();
  }
  size_t committed_bytes() const {
    const std::lock_guard lock(mutex_);
    return committed_.size() * granule_bytes_;
  }

  std::byte* Reserve(size_t bytes) override {
    FQ_CHECK(bytes > 0 && bytes % granule_bytes_ == 0);
    void* data =
        mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FQ_CHECK(data != MAP_FAILED);
    const std::lock_guard lock(mutex_);
    reserved_[static_cast<std::byte*>(data)] = bytes;
    return static_cast<std::byte*>(data);
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    FQ_CHECK(reserved_.count(begin) == 1 && reserved_[begin] == bytes);
    committed_.erase(committed_.lower_bound(begin), committed_.lower_bound(begin + bytes));
    reserved_.erase(begin);
    munmap(begin, bytes);
  }

  bool Commit(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    CheckRange(begin, bytes);
    FQ_CHECK(CommittedIn(begin, bytes) == 0);
    if (committed_.size() + bytes / granule_bytes_ > limit_granules_) return false;
    for (size_t at = 0; at < bytes; at += granule_bytes_) committed_.insert(begin + at);
    return mprotect(begin, bytes, PROT_READ | PROT_WRITE) == 0;
  }

  void Decommit(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    CheckRange(begin, bytes);
    FQ_CHECK(CommittedIn(begin, bytes) == bytes / granule_bytes_);
    committed_.erase(committed_.lower_bound(begin), committed_.lower_bound(begin + bytes));
    madvise(begin, bytes, MADV_DONTNEED);
    mprotect(begin, bytes, PROT_NONE);
  }

 private:
  void CheckRange(std::byte* begin, size_t bytes) const {
    const auto after = reserved_.upper_bound(begin);
    FQ_CHECK(after != reserved_.begin());
    const auto& [base, reserved_bytes] = *std::prev(after);
    const auto offset = static_cast<size_t>(begin - base);
    FQ_CHECK(offset % granule_bytes_ == 0 && bytes % granule_bytes_ == 0 && bytes > 0);
    FQ_CHECK(offset + bytes <= reserved_bytes);
  }

  size_t CommittedIn(std::byte* begin, size_t bytes) const {
    return static_cast<size_t>(
        std::distance(committed_.lower_bound(begin), committed_.lower_bound(begin + bytes)));
  }

  const size_t granule_bytes_;
  const size_t limit_granules_;
  bool keeps_idle_ = true;
  mutable std::mutex mutex_;               // of all below
  std::map<std::byte*, size_t> reserved_;  // bytes by begin
  std::set<std::byte*> committed_;         // where granules begin
};

}  // namespace fq
