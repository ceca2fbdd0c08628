#include "tests/testing/guarded_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <map>
#include <mutex>

#include "kernels/base/check.h"

namespace fq {
namespace {

std::byte* MapFile(int fd, uint64_t bytes, int protection) {
  void* data = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  FQ_CHECK(data != MAP_FAILED);
  return static_cast<std::byte*>(data);
}

// Everything that lives, by device address.
struct Registry {
  std::mutex mutex;
  std::map<const std::byte*, const GuardedMemory*> all;
};
Registry& All() {
  static Registry registry;
  return registry;
}

}  // namespace

GuardedMemory::GuardedMemory(int fd, uint64_t bytes)
    : bytes_(bytes),
      device_(MapFile(fd, bytes, PROT_NONE)),
      host_(MapFile(fd, bytes, PROT_READ | PROT_WRITE)) {
  const std::lock_guard lock(All().mutex);
  All().all[device_] = this;
}

GuardedMemory::~GuardedMemory() {
  {
    const std::lock_guard lock(All().mutex);
    All().all.erase(device_);
  }
  munmap(device_, bytes_);
  munmap(host_, bytes_);
}

int CreateMemfd(uint64_t bytes) {
  const int fd = memfd_create("stand-in for device memory", MFD_CLOEXEC);
  FQ_CHECK(fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

std::byte* HostAddress(const std::byte* device, uint64_t bytes) {
  const std::lock_guard lock(All().mutex);
  auto after = All().all.upper_bound(device);
  if (after != All().all.begin()) {
    const GuardedMemory& memory = *std::prev(after)->second;
    const auto offset = static_cast<uint64_t>(device - memory.device());
    if (offset <= memory.bytes() && bytes <= memory.bytes() - offset) return memory.host() + offset;
  }
  std::fprintf(stderr, "%p, %llu bytes: not device memory\n", static_cast<const void*>(device),
               static_cast<unsigned long long>(bytes));
  std::terminate();
}

}  // namespace fq
