// Memory that a client of the same host shares with its node: a sealed memfd
// (proto/segment_socket.md). One segment may serve several sessions. Thread-safe, but for the
// bytes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"

namespace fq::client {

// Closes a descriptor.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd();
  int get() const { return fd_; }

 private:
  int fd_;
};

class Segment {
 public:
  // `bytes` > 0, rounded up to whole memory pages. ResourceExhausted: the system gives no memory.
  static absl::StatusOr<std::shared_ptr<Segment>> Create(uint64_t bytes);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  // Stays at this address for the life of the segment. When a call that used the segment ended
  // without an answer, its contents are lost and read as zeros: see Replace.
  absl::Span<std::byte> memory() const { return memory_; }

  // Number of replacements so far.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

  // Puts fresh memory at the same address. A node that did not answer in time may still write to
  // the old memory, or read it, whenever it wakes up; after this nobody here sees that. Nothing
  // happens unless the segment still is of `generation`.
  absl::Status Replace(uint64_t generation) ABSL_LOCKS_EXCLUDED(mu_);

  // The current descriptor with its generation; stays open while held.
  struct Current {
    std::shared_ptr<const OwnedFd> fd;  // the segment holds it too, until it is replaced
    uint64_t generation = 0;
  };
  Current current() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  Segment(absl::Span<std::byte> memory, std::shared_ptr<const OwnedFd> fd)
      : memory_(memory), fd_(std::move(fd)) {}

  const absl::Span<std::byte> memory_;
  std::atomic<uint64_t> generation_{0};
  mutable absl::Mutex mu_;
  std::shared_ptr<const OwnedFd> fd_ ABSL_GUARDED_BY(mu_);
};

}  // namespace fq::client
