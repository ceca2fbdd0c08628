// Memory that stands in for a GPU's: it has a device address that kills whoever dereferences it,
// and a host address by which the stand-in works on it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fq {

class GuardedMemory {
 public:
  // Maps a memfd of `bytes` bytes twice; the descriptor stays the caller's. Ends the process when
  // that fails.
  GuardedMemory(int fd, uint64_t bytes);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  std::byte* device() const { return device_; }
  std::byte* host() const { return host_; }
  uint64_t bytes() const { return bytes_; }

 private:
  const uint64_t bytes_;
  std::byte* device_;
  std::byte* host_;
};

// A memfd of that length, all zero.
int CreateMemfd(uint64_t bytes);

// The host address of `bytes` bytes of device memory. Ends the process with a message when they are
// not all in one GuardedMemory. Any thread.
std::byte* HostAddress(const std::byte* device, uint64_t bytes);

}  // namespace fq
