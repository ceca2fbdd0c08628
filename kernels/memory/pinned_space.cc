#include "kernels/memory/pinned_space.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <mutex>
#include <set>

namespace fq {
namespace {

#ifndef MADV_POPULATE_WRITE  // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif

class PinnedSpace final : public MemorySpace {
 public:
  PinnedSpace(int device, uint64_t most_bytes)
      : device_(device), most_(most_bytes / kPinnedGranuleBytes) {}

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
    return begin;
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    Unpin(begin, bytes);
    munmap(begin, bytes);
  }

  // Granule by granule: what is pinned in one call can only be taken back in one.
  bool Commit(std::byte* begin, size_t bytes) override {
    for (size_t at = 0; at < bytes; at += kPinnedGranuleBytes) {
      if (Pin(begin + at)) continue;
      Decommit(begin, at);
      return false;
    }
    return true;
  }

  void Decommit(std::byte* begin, size_t bytes) override {
    if (bytes == 0) return;
    Unpin(begin, bytes);
    madvise(begin, bytes, MADV_DONTNEED);
  }

 private:
  // Memory is filled with zeros before: CUDA's calls wait for one that pins, but not for that.
  bool Pin(std::byte* granule) {
    if (!Enter(granule)) return false;
    madvise(granule, kPinnedGranuleBytes, MADV_POPULATE_WRITE);
    if (cudaSetDevice(device_) == cudaSuccess &&
        cudaHostRegister(granule, kPinnedGranuleBytes, cudaHostRegisterPortable) == cudaSuccess) {
      return true;
    }
    cudaGetLastError();
    madvise(granule, kPinnedGranuleBytes, MADV_DONTNEED);
    const std::lock_guard lock(mutex_);
    pinned_.erase(granule);
    return false;
  }

  bool Enter(std::byte* granule) {
    const std::lock_guard lock(mutex_);
    return pinned_.size() < most_ && pinned_.insert(granule).second;
  }

  void Unpin(std::byte* begin, size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto first = pinned_.lower_bound(begin), last = pinned_.lower_bound(begin + bytes);
    if (first == last) return;
    cudaSetDevice(device_);
    for (auto it = first; it != last; ++it) {
      if (cudaHostUnregister(*it) != cudaSuccess) cudaGetLastError();
    }
    pinned_.erase(first, last);
  }

  const int device_;
  const size_t most_;  // granules
  std::mutex mutex_;
  std::set<std::byte*> pinned_;  // where granules begin that are pinned, or being pinned
};

}  // namespace

std::unique_ptr<MemorySpace> CreatePinnedSpace(int device, uint64_t most_bytes) {
  return std::make_unique<PinnedSpace>(device, most_bytes);
}

}  // namespace fq
