#include "kernels/memory/pinned_space.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <set>

namespace fq {
namespace {

// Pinning costs a call per granule, and a granule is what sizes of slabs take from each other.
constexpr size_t kGranuleBytes = size_t{16} << 20;

class PinnedSpace final : public MemorySpace {
 public:
  size_t granule_bytes() const override { return kGranuleBytes; }
  bool on_host() const override { return true; }

  std::byte* Reserve(size_t bytes) override {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data != MAP_FAILED ? static_cast<std::byte*>(data) : nullptr;
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    Unpin(begin, bytes);
    munmap(begin, bytes);
  }

  // Granule by granule: what is pinned in one call can only be taken back in one.
  bool Commit(std::byte* begin, size_t bytes) override {
    for (size_t at = 0; at < bytes; at += kGranuleBytes) {
      if (cudaHostRegister(begin + at, kGranuleBytes, cudaHostRegisterPortable) != cudaSuccess) {
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
