#include "server/workers.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "kernels/base/status_macros.h"
#include "server/retry_after.h"

namespace fq {
namespace {

constexpr uint32_t kRetryAfterMs = 20;  // a few blocks' work

// Indices of one ForEach. Shared with helper jobs that may start after the ForEach has returned:
// they find no index left and never touch `work`.
class IndexRun {
 public:
  IndexRun(size_t count, const std::function<absl::Status(size_t)>& work)
      : count_(count), work_(work) {}

  void Work() {
    for (size_t index = 0; Take(index);) Finish(work_(index));
  }

  absl::Status Wait() {
    absl::MutexLock lock(&mutex_);
    while (running_ != 0) idle_.Wait(&mutex_);
    return first_error_;
  }

 private:
  bool Take(size_t& index) {
    absl::MutexLock lock(&mutex_);
    if (next_ == count_) return false;
    index = next_++;
    ++running_;
    return true;
  }

  void Finish(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    if (--running_ == 0) idle_.Signal();
    if (status.ok()) return;
    next_ = count_;
    if (first_error_.ok()) first_error_ = std::move(status);
  }

  const size_t count_;
  const std::function<absl::Status(size_t)>& work_;
  absl::Mutex mutex_;
  absl::CondVar idle_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status first_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

WorkerPool::WorkerPool(uint32_t workers, uint32_t queue_depth, const char* limit)
    : workers_(workers), queue_depth_(queue_depth), limit_(limit) {
  for (uint32_t i = 0; i < workers; ++i) threads_.emplace_back([this] { Work(); });
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    work_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status WorkerPool::Submit(std::function<void()> job) {
  absl::MutexLock lock(&mutex_);
  if (queue_.size() >= queue_depth_) {
    return WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                              limit_, ": ", queue_.size(), " calls wait, at most ", queue_depth_)),
                          kRetryAfterMs);
  }
  queue_.push_back(std::move(job));
  work_.Signal();
  return absl::OkStatus();
}

void WorkerPool::Resume(std::function<void()> job) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(job));
  work_.Signal();
}

absl::Status WorkerPool::Run(const std::function<void()>& job) {
  if (BeginHere()) {
    job();
    EndHere();
    return absl::OkStatus();
  }
  absl::Notification done;
  FQ_RETURN_IF_ERROR(Submit([&] {
    job();
    done.Notify();
  }));
  done.WaitForNotification();
  return absl::OkStatus();
}

bool WorkerPool::BeginHere() {
  absl::MutexLock lock(&mutex_);
  if (!queue_.empty() || working_ == workers_) return false;
  ++working_;
  return true;
}

void WorkerPool::EndHere() {
  absl::MutexLock lock(&mutex_);
  --working_;
  work_.Signal();  // a worker may have waited for its turn
}

absl::Status WorkerPool::ForEach(size_t count, const std::function<absl::Status(size_t)>& work) {
  auto run = std::make_shared<IndexRun>(count, work);  // shared with the helper jobs
  size_t helpers = std::min<size_t>(count, workers_);
  if (helpers > 1) Help(helpers - 1, [run] { run->Work(); });
  run->Work();
  return run->Wait();
}

void WorkerPool::Help(size_t helpers, const std::function<void()>& job) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < helpers && queue_.size() < queue_depth_; ++i) queue_.push_back(job);
  work_.SignalAll();
}

size_t WorkerPool::queued() const {
  absl::MutexLock lock(&mutex_);
  return queue_.size();
}

void WorkerPool::Work() {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    while (queue_.empty() ? !stopping_ : working_ == workers_) work_.Wait(&mutex_);
    if (queue_.empty()) return;
    std::function<void()> job = std::move(queue_.front());
    queue_.pop_front();
    ++working_;
    mutex_.Unlock();
    job();
    job = nullptr;  // what it holds ends here too
    mutex_.Lock();
    --working_;
  }
}

}  // namespace fq
