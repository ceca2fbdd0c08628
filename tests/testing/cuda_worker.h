// A process with a GPU cache of its own, as an engine is: for tests of memory that crosses
// processes.
#pragma once

#include <sys/types.h>

#include <memory>

#include "tests/testing/device_world.h"

namespace fq {

class CudaWorker final : public Worker {
 public:
  // Starts this program again, whose main must begin with RunIfWorker. Ends the process when that
  // fails, as all methods do when the worker is gone.
  CudaWorker();
  ~CudaWorker() override;

  pid_t pid() const { return pid_; }
  void Kill();  // SIGKILL, and waits until it is gone

  std::unique_ptr<WorkerMemory> Allocate(ShareKind kind, uint64_t bytes) override;
  IpcHandle event() const override { return event_; }
  void WriteLate(WorkerMemory* memory, uint64_t offset, absl::Span<const std::byte> bytes) override;
  void ReadLate(WorkerMemory* memory, uint64_t offset, uint64_t bytes) override;
  std::vector<std::byte> Finish() override;

 private:
  int socket_;
  pid_t pid_;
  IpcHandle event_;
};

// The worker's side: when the arguments say that this process is one, serves its test and exits.
void RunIfWorker(int argc, char** argv);

}  // namespace fq
