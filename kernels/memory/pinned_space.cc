#include "kernels/memory/pinned_space.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <set>

namespace fq {
namespace {

class PinnedSpace final : public MemorySpace {
 public:
  size_t granule_bytes() const override { return kPinnedGranuleBytes; }
  bool on_host() const override { return true; }

  // A granule more, of which what is not aligned goes back.
  std::byte* Reserve(size_t bytes) override {
    void* data = mmap(nullptr, bytes + kPinnedGranuleBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    auto* begin = static_cast<std::byte*>(data);
    const size_t before =
        (kPinnedGranuleBytes - reinterpret_cast<uintptr_t>(data)) % kPinnedGranuleBytes;
    if (before > 0) munmap(begin, before);
    munmap(begin + before + bytes, kPinnedGranuleBytes - before);
    madvise(begin + before, bytes, MADV_HUGEPAGE);  // quicker to fill and to pin
    return begin + before;
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    Unpin(begin, bytes);
    munmap(begin, bytes);
  }

  // Granule by granule: what is pinned in one call can only be taken back in one.
  bool Commit(std::byte* begin, size_t bytes) override {
    for (size_t at = 0; at < bytes; at += kPinnedGranuleBytes) {
      if (cudaHostRegister(begin + at, kPinnedGranuleBytes, cudaHostRegisterPortable) !=
          cudaSuccess) {
        cudaGetLastError();
        Decommit(begin, at);
        return false;
      }
      pinned_.insert(begin + at);
    }
    return true;
  }

  void Decommit(std::byte* begin, size_t bytes) override {
    Unpin(begin, bytes);
    if (bytes > 0) madvise(begin, bytes, MADV_DONTNEED);
  }

 private:
  void Unpin(std::byte* begin, size_t bytes) {
    auto it = pinned_.lower_bound(begin);
    while (it != pinned_.end() && *it < begin + bytes) {
      if (cudaHostUnregister(*it) != cudaSuccess) cudaGetLastError();
      it = pinned_.erase(it);
    }
  }

  std::set<std::byte*> pinned_;  // where granules begin
};

}  // namespace

std::unique_ptr<MemorySpace> CreatePinnedSpace() { return std::make_unique<PinnedSpace>(); }

}  // namespace fq
