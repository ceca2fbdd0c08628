#include "kernels/memory/host_space.h"

#include <sys/mman.h>
#include <unistd.h>

namespace fq {
namespace {

class HostSpace final : public MemorySpace {
 public:
  size_t granule_bytes() const override { return granule_bytes_; }
  bool on_host() const override { return true; }
  bool keeps_idle() const override { return false; }

  std::byte* Reserve(size_t bytes) override {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    // A huge page would put memory behind what is not committed, past the limit of the caller.
    madvise(data, bytes, MADV_NOHUGEPAGE);
    return static_cast<std::byte*>(data);
  }

  void Unreserve(std::byte* begin, size_t bytes) override { munmap(begin, bytes); }
  bool Commit(std::byte*, size_t) override { return true; }
  void Decommit(std::byte* begin, size_t bytes) override { madvise(begin, bytes, MADV_DONTNEED); }

 private:
  const size_t granule_bytes_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
};

}  // namespace

std::unique_ptr<MemorySpace> CreateHostSpace() { return std::make_unique<HostSpace>(); }

}  // namespace fq
