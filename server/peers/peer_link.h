// A peer link: two communicators between the node's GPU and a worker's, and the order of what goes
// through them (proto/flashquant/v1/kv_cache.proto, "Peer links"). One thread moves both along, so
// that nobody else ever waits for a worker. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/peers/peer_comm.h"

namespace fq {

// Why a link ended.
enum class PeerLinkEnd : uint8_t { kClosed, kTimeout, kFailed, kCall };

// As metrics name it.
const char* PeerLinkEndName(PeerLinkEnd end);

class PeerLink {
 public:
  // Operations of one direction that may wait.
  static constexpr uint64_t kMaxWaiting = 128;

  struct Parts {
    std::unique_ptr<PeerComm> down, up;
    PeerRegion hello;                     // of operation 0
    std::shared_ptr<const void> window;   // that all regions lie in; let go when nothing uses it
    std::chrono::milliseconds timeout{};  // without progress
    std::function<std::chrono::steady_clock::time_point()> clock =  // of the timeout
        std::chrono::steady_clock::now;
    std::function<void(PeerDirection, uint64_t bytes)> moved;     // an operation is done
    std::function<void(PeerLinkEnd, const std::string&)> broken;  // once; from the link's thread
  };
  using Done = std::function<void(const absl::Status&)>;

  explicit PeerLink(Parts parts);
  ~PeerLink();  // breaks it, and waits

  // Queues a send; returns its sequence. `keep` lives until it is done or given up.
  // FailedPrecondition: broken, and why. ResourceExhausted: kMaxWaiting wait.
  absl::StatusOr<uint64_t> Send(PeerRegions regions, std::shared_ptr<const void> keep);

  // Receives the worker's operation `sequence` when its turn has come, then calls `done` from the
  // link's thread; FailedPrecondition there: the link broke. InvalidArgument: that operation has
  // been named already, or is too far ahead; `done` is not called then.
  absl::Status Receive(uint64_t sequence, PeerRegions regions, Done done);

  // Ends the link: its communicators are aborted soon. The first reason counts.
  void Break(PeerLinkEnd end, std::string why);

  // Whether the worker has ever come.
  bool joined() const { return joined_; }
  // Communicators are gone, nothing is running and nothing will.
  bool ended() const { return ended_; }
  // Returns then. Break first.
  void AwaitEnd() const;

 private:
  struct Operation {
    PeerRegions regions;
    std::shared_ptr<const void> keep;  // of sends
    Done done;                         // of receives
  };
  // One direction. What is not guarded is the thread's own.
  struct Lane {
    PeerDirection direction = PeerDirection::kSend;
    std::unique_ptr<PeerComm> comm;
    std::map<uint64_t, Operation> waiting;  // guarded by mutex_
    uint64_t next = 0;                      // sequence to start next; guarded by mutex_
    std::deque<Operation> started;
    uint64_t completed = 0;
    bool busy = true;                               // something is to come; at first the other side
    std::chrono::steady_clock::time_point since{};  // of the last progress while busy
  };

  void Run();
  // Moves a lane along; whether anything happened.
  absl::StatusOr<bool> Serve(Lane& lane);
  absl::StatusOr<bool> StartWaiting(Lane& lane);
  absl::StatusOr<bool> EndDone(Lane& lane);
  void Pause(std::chrono::steady_clock::time_point last_moved);
  void GiveUp();
  absl::Status Broken() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Parts parts_;  // the thread's
  mutable absl::Mutex mutex_;
  mutable absl::CondVar changed_;
  uint64_t last_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_broken_ ABSL_GUARDED_BY(mutex_) = false;
  PeerLinkEnd end_ ABSL_GUARDED_BY(mutex_) = PeerLinkEnd::kClosed;
  std::string why_ ABSL_GUARDED_BY(mutex_);
  Lane lanes_[2];
  std::atomic<bool> joined_{false}, ended_{false};
  std::thread thread_;
};

}  // namespace fq
