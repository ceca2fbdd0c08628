// fqctl.
#include <malloc.h>

#include <iostream>
#include <string>
#include <vector>

#include "client/cli/fqctl.h"

int main(int argc, char** argv) {
  // glibc gives large blocks back at once by default, which makes large gRPC messages ten times
  // slower (server/malloc_tuning.h).
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // NOLINT(concurrency-mt-unsafe): before any thread
  mallopt(M_TRIM_THRESHOLD, 1 << 30);   // NOLINT(concurrency-mt-unsafe)
  return static_cast<int>(
      fq::cli::Run(std::vector<std::string>(argv + 1, argv + argc), std::cout, std::cerr));
}
