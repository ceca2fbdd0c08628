// A worker on another GPU, in a process of its own that tests command by lines of text: its window
// and its ends of a peer link, by NCCL. Not thread-safe.
#pragma once

#include <cuda_runtime_api.h>
#include <sys/types.h>

#include <memory>
#include <string>

#include "server/peers/nccl_library.h"
#include "server/peers/peer_comm.h"

namespace fq {

class NcclWorker {
 public:
  // Runs this program again as `--nccl-worker` (RunNcclWorker).
  NcclWorker(const std::string& library, int ordinal, uint64_t window_bytes, int max_ctas);
  ~NcclWorker();  // kills it
  NcclWorker(const NcclWorker&) = delete;
  NcclWorker& operator=(const NcclWorker&) = delete;

  // Asks and waits for the answer. join DOWN UP; recv|send OFFSET BYTES ...; loop recv|send COUNT
  // OFFSET BYTES; fill OFFSET BYTES SEED; sum OFFSET BYTES ...; plain ID recv|send ROUNDS COUNT
  // BYTES; leave.
  std::string Ask(const std::string& line);
  void Tell(const std::string& line);  // the answer is taken by Answer
  std::string Answer();
  void Kill();  // SIGKILL, and waits

 private:
  pid_t process_ = -1;
  int socket_ = -1;
};

// What peer links are compared with: calls of one blocking communicator with NCCL's own settings,
// one after the other on one stream. Ends the process when anything fails.
class PlainLoop {
 public:
  PlainLoop(const std::string& library, int ordinal, int rank, const PeerId& id);
  ~PlainLoop();
  // Seconds.
  double Run(bool send, std::byte* data, int count, uint64_t bytes);

 private:
  const std::unique_ptr<const NcclLibrary> nccl_;
  const int peer_;
  NcclCommHandle comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// main of the worker; its exit status.
int RunNcclWorker(int argc, char** argv);

std::string ToHex(const PeerId& id);

}  // namespace fq
