// Memory segments that clients of this host share with the node (proto/segment_socket.md), host
// memory or a GPU's. A mapping lives as long as its session's table or a running call holds it.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/device/device_segment.h"
#include "server/peers/peer_link.h"

namespace fq {

// Closes a descriptor.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  ~OwnedFd();
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }  // for whoever closes it from here on

 private:
  int fd_;
};

// A mapped memfd that cannot shrink. Its owner may write to it at any time: read each value once.
class Segment {
 public:
  // Checks that `fd` is a memfd with F_SEAL_SHRINK and F_SEAL_GROW, without F_SEAL_WRITE, of
  // exactly `bytes`; maps it. InvalidArgument names what differs.
  static absl::StatusOr<std::shared_ptr<const Segment>> Map(const OwnedFd& fd, uint64_t bytes);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  absl::Span<std::byte> memory() const { return memory_; }  // [bytes]

 private:
  explicit Segment(absl::Span<std::byte> memory) : memory_(memory) {}
  const absl::Span<std::byte> memory_;
};

// The node's window of a peer link: a worker on another GPU has one like it.
struct PeerSegment {
  std::shared_ptr<const DeviceSegment> window;
  std::byte* begin = nullptr;  // of the window
  uint64_t bytes = 0;
  std::shared_ptr<PeerLink> link;  // null: no such segment
};

struct SegmentLimits {
  uint32_t max_segments = 16;
  uint64_t max_segment_bytes = uint64_t{64} << 30;
};

// Segments of one session.
class SegmentTable {
 public:
  explicit SegmentTable(SegmentLimits limits) : limits_(limits) {}

  // Returns the new id, from 1, never used again. ResourceExhausted names the limit;
  // InvalidArgument as Segment::Map.
  absl::StatusOr<uint32_t> Register(const OwnedFd& fd, uint64_t bytes);
  absl::StatusOr<uint32_t> Register(std::shared_ptr<const DeviceSegment> segment);
  absl::StatusOr<uint32_t> Register(const PeerSegment& segment);

  // NotFound when there is none of that id. A peer link ends.
  absl::Status Unregister(uint32_t id);

  // Null when there is none of that id and kind.
  std::shared_ptr<const Segment> Find(uint32_t id) const;
  std::shared_ptr<const DeviceSegment> FindDevice(uint32_t id) const;
  PeerSegment FindPeer(uint32_t id) const;

  // Unmaps all, ends all peer links and takes no more.
  void Close();
  size_t size() const;
  size_t device_segments(ShareKind kind) const;

 private:
  using AnySegment = std::variant<std::shared_ptr<const Segment>,
                                  std::shared_ptr<const DeviceSegment>, PeerSegment>;

  absl::Status CheckRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AnySegment FindAny(uint32_t id) const;  // null when there is none

  const SegmentLimits limits_;
  mutable absl::Mutex mutex_;
  std::map<uint32_t, AnySegment> segments_ ABSL_GUARDED_BY(mutex_);
  uint32_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace fq
