// The threads that encode and decode, and the one queue before them. All methods thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace fq {

class WorkerPool {
 public:
  // `limit` names the option that bounds the queue.
  WorkerPool(uint32_t workers, uint32_t queue_depth, const char* limit = "queue-depth");
  ~WorkerPool();  // after the queued jobs have run

  // Queues a job. ResourceExhausted, with retry-after, when `queue_depth` jobs wait already.
  absl::Status Submit(std::function<void()> job);

  // Queues a job that has waited elsewhere, however many wait here.
  void Resume(std::function<void()> job);

  // Runs a job in the calling thread, which counts as a worker meanwhile, when fewer than all work
  // and none waits. Else as Submit, and waits until it has run.
  absl::Status Run(const std::function<void()>& job);

  // Calls work(0..count-1), each once, on the calling thread and on idle workers; returns when all
  // have returned. Stops handing out indices at the first error and returns that. Never waits for a
  // worker that has not begun.
  absl::Status ForEach(size_t count, const std::function<absl::Status(size_t)>& work);

  uint32_t workers() const { return workers_; }
  size_t queued() const;

 private:
  void Work();
  bool BeginHere() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndHere() ABSL_LOCKS_EXCLUDED(mutex_);
  void Help(size_t helpers, const std::function<void()>& job);

  const uint32_t workers_, queue_depth_;
  const char* const limit_;
  mutable absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  size_t working_ ABSL_GUARDED_BY(mutex_) = 0;  // jobs that run; at most one a worker
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
  absl::CondVar work_;  // there is some, or the pool stops
};

}  // namespace fq
