// In the place of the CUDA runtime and driver: memory management over memfds, for tests of
// kernels/memory without a GPU. Calls are thread-safe, the struct is not: while another thread
// makes calls, read none of it but by PinnedBytes(). Link driver_stand_in.cc instead of cudart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fq {

struct DriverStandIn {
  bool present = true;  // the machine has a driver
  uint64_t free_bytes = uint64_t{64} << 20;
  size_t granularity = size_t{2} << 20;
  uint64_t pinned_limit_bytes = uint64_t{64} << 20;  // of cudaHostRegister
  std::string fail;    // name of the call that fails from now on, once skipped
  int fail_after = 0;  // so many times

  // What is out.
  int handles = 0, mappings = 0, reservations = 0;
  uint64_t pinned_bytes = 0;
};

uint64_t PinnedBytes();

// The one of this process; a test may replace its contents.
DriverStandIn& Driver();

}  // namespace fq
