// FQ_CHECK: ends the process when one of our own invariants is broken; stays on in release builds.
// Never for bytes that came from the network, a disk or another process: those get an absl::Status.
#pragma once

#include <cstdio>
#include <exception>

namespace fq {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: FQ_CHECK failed: %s\n", file, line, condition);
  std::terminate();
}

}  // namespace fq

#define FQ_CHECK(condition)                                              \
  do {                                                                   \
    if (!(condition)) ::fq::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)
