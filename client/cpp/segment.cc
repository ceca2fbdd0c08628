#include "client/cpp/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

absl::Status NoMemory(const char* what, uint64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      what, " for a segment of ", bytes, " bytes: ", std::generic_category().message(errno)));
}

absl::StatusOr<std::shared_ptr<const OwnedFd>> MakeMemfd(uint64_t bytes) {
  auto fd = std::make_shared<const OwnedFd>(
      memfd_create("flashquant-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd->get() < 0) return NoMemory("memfd_create", bytes);
  if (ftruncate(fd->get(), static_cast<off_t>(bytes)) != 0) return NoMemory("ftruncate", bytes);
  if (fcntl(fd->get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return NoMemory("F_ADD_SEALS", bytes);
  }
  return fd;
}

// At `address` when that is not null.
absl::StatusOr<std::byte*> MapMemfd(const OwnedFd& fd, uint64_t bytes, std::byte* address) {
  void* mapped = mmap(address, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | (address != nullptr ? MAP_FIXED : 0), fd.get(), 0);
  if (mapped == MAP_FAILED) return NoMemory("mmap", bytes);
  return static_cast<std::byte*>(mapped);
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::shared_ptr<Segment>> Segment::Create(uint64_t bytes) {
  if (bytes == 0) return absl::InvalidArgumentError("a segment of 0 bytes; must be at least 1");
  const uint64_t page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  bytes = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  FQ_ASSIGN_OR_RETURN(auto fd, MakeMemfd(bytes));
  FQ_ASSIGN_OR_RETURN(std::byte * memory, MapMemfd(*fd, bytes, nullptr));
  return std::shared_ptr<Segment>(new Segment({memory, bytes}, std::move(fd)));
}

Segment::~Segment() { munmap(memory_.data(), memory_.size()); }

absl::Status Segment::Replace(uint64_t generation) {
  absl::MutexLock lock(&mu_);
  if (generation_.load(std::memory_order_relaxed) != generation) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(auto fd, MakeMemfd(memory_.size()));
  FQ_RETURN_IF_ERROR(MapMemfd(*fd, memory_.size(), memory_.data()).status());
  fd_ = std::move(fd);
  generation_.store(generation + 1, std::memory_order_release);
  return absl::OkStatus();
}

Segment::Current Segment::current() const {
  absl::MutexLock lock(&mu_);
  return {fd_, generation_.load(std::memory_order_relaxed)};
}

}  // namespace fq::client
