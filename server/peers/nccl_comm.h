// PeerTransport by NCCL: every communicator has a stream of its own, and an event behind each
// operation. Nothing of it blocks but Abort, which waits until NCCL's kernels have left the GPU.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/peers/peer_comm.h"

namespace fq {

struct NcclOptions {
  std::string library;  // as dlopen takes it: libnccl.so.2, or a path
  int ordinal = 0;      // of the GPU
  int max_ctas = 24;    // thread blocks, so multiprocessors, that a communicator may take
};

// Before the first CUDA call of the process: kernels are loaded at once, because loading one later
// waits for the GPU, and so for a worker; no multicast memory, which two ranks have no use for.
// What the environment says already stays.
void PrepareNcclEnvironment();

// NotFound, FailedPrecondition as NcclLibrary::Open; names the library.
absl::StatusOr<std::unique_ptr<PeerTransport>> OpenNccl(const NcclOptions& options);

}  // namespace fq
