// The peer links of all sessions: what they may take, and their ends (kv_cache.proto, "Peer
// links"). Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/device.h"
#include "kernels/params.h"
#include "server/clock.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/peer_limits.h"
#include "server/peers/peer_comm.h"
#include "server/peers/peer_link.h"
#include "server/segments.h"

namespace fq {

class PeerLinks {
 public:
  // NCCL keeps 2 MiB of GPU memory of every link whose worker never came (2.28.9): the node takes
  // no more of them than this.
  static constexpr uint32_t kMaxUnjoined = 256;

  // Keeps the pointers.
  PeerLinks(Device* device, std::unique_ptr<PeerTransport> transport, const PeerLimits& limits,
            const Metrics* metrics, const Log* log, Clock clock);
  ~PeerLinks();  // ends all, and waits for them

  const PeerLimits& limits() const { return limits_; }
  const std::string& version() const { return transport_->version(); }

  struct Opened {
    PeerSegment segment;
    PeerId down{}, up{};
  };
  // A window of `window_bytes`, a multiple of 256 that holds a block of `shape`, and a link that
  // waits for its worker. ResourceExhausted names the limit, or what the GPU has; Unavailable:
  // NCCL failed.
  absl::StatusOr<Opened> Open(uint64_t window_bytes, Milliseconds timeout, const SlabShape& shape);

  // Our end of a link that another node has opened for us, as its worker; counts as one of ours.
  // What that node sends is received with PeerLink::Receive. Errors as of Open.
  struct Joined {
    std::shared_ptr<PeerLink> link;
    std::shared_ptr<const DeviceSegment> scratch;  // holds a block of `shape`, for whatever
  };
  absl::StatusOr<Joined> JoinOther(const PeerId& down, const PeerId& up, Milliseconds timeout,
                                   const SlabShape& shape);

  // Breaks all of them: whoever waits hears of it soon.
  void EndAll();

  // Forgets links that have ended. Returns how many are left.
  size_t Reap();

 private:
  // Windows that have memory. They may outlive this.
  struct Taken {
    std::mutex mutex;
    uint64_t windows = 0, bytes = 0;  // guarded by it
  };
  // A window's part of the limits, until it is let go.
  absl::StatusOr<std::shared_ptr<const void>> TakeRoom(uint64_t bytes);
  // Memory of a link, [WindowMemoryBytes(window_bytes)].
  absl::StatusOr<std::shared_ptr<const DeviceSegment>> TakeWindow(uint64_t window_bytes,
                                                                  const SlabShape& shape);
  std::shared_ptr<PeerLink> Make(PeerLink::Parts parts, std::shared_ptr<const DeviceSegment> window,
                                 Milliseconds timeout);
  void Ended(PeerLinkEnd end, const std::string& why) const;

  Device* const device_;
  const std::unique_ptr<PeerTransport> transport_;
  const PeerLimits limits_;
  const Metrics* const metrics_;
  const Log* const log_;
  const Clock clock_;                  // of timeouts
  std::atomic<uint32_t> unjoined_{0};  // links that ended before their worker came
  const std::shared_ptr<Taken> taken_ = std::make_shared<Taken>();
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<PeerLink>> links_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fq
