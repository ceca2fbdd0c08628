// A node without its listeners: what the calls work on, made from the options and passed down.
// Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/codec_set.h"
#include "kernels/device.h"
#include "server/clock.h"
#include "server/connected_peers.h"
#include "server/device/device_scheduler.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/namespaces.h"
#include "server/options.h"
#include "server/page_path.h"
#include "server/peer_links.h"
#include "server/quality_watch.h"
#include "server/sessions.h"
#include "server/tiers.h"
#include "server/workers.h"

namespace fq {

// What a test may replace.
struct NodeParts {
  Clock clock = SteadyNow;  // of leases and peer links
  std::vector<std::shared_ptr<const CodecSet>>
      codec_sets;                        // beside those of the options; the registry holds them too
  const Log* log = nullptr;              // outlives the node
  std::unique_ptr<Device> device;        // instead of the options' own
  std::unique_ptr<PeerTransport> peers;  // likewise
};

class Node {
 public:
  // InvalidArgument: an option, or a codec-set file, names it.
  static absl::StatusOr<std::unique_ptr<Node>> Create(const Options& options, NodeParts parts);
  ~Node();

  const Options& options() const { return options_; }
  const Log& log() const { return *log_; }
  Tiers& tiers() { return *tiers_; }
  Device* device() { return device_.get(); }  // null without a GPU
  Metrics& metrics() { return metrics_; }
  WorkerPool& workers() { return *workers_; }
  WorkerPool& fetchers() { return *fetchers_; }  // these wait for other nodes
  NamespaceRegistry& namespaces() { return *namespaces_; }
  ConnectedPeers& peers() { return peers_; }
  SessionRegistry& sessions() { return *sessions_; }
  PagePath& page_path() { return *page_path_; }
  PeerLinks* peer_links() { return peer_links_.get(); }  // null without NCCL
  NodeSample Sample();

  // New Stores and sessions are refused from here on.
  void BeginDrain() { draining_ = true; }
  // Unavailable while draining.
  absl::Status CheckAccepting() const;
  bool draining() const { return draining_; }

  // Calls that have not been answered.
  void BeginCall();
  void EndCall();
  // False when calls still run after `limit`.
  bool WaitIdle(Milliseconds limit);

 private:
  Node(const Options& options, NodeParts parts, std::unique_ptr<DeviceScheduler> scheduler,
       std::unique_ptr<Tiers> tiers);
  void ExpireLeasesUntilStopped();

  const Options options_;
  const Log* const log_;
  Metrics metrics_;
  ConnectedPeers peers_;
  const std::unique_ptr<Device> device_;  // before all that it makes
  const std::unique_ptr<Tiers> tiers_;
  const std::unique_ptr<NamespaceRegistry> namespaces_;
  const std::unique_ptr<SessionRegistry> sessions_;
  const std::unique_ptr<DeviceScheduler> scheduler_;  // null without a GPU
  std::unique_ptr<WorkerPool> workers_, fetchers_;    // after what their jobs use
  QualityWatch quality_;
  const std::unique_ptr<PagePath> page_path_;
  std::unique_ptr<PeerLinks> peer_links_;  // null without NCCL
  const double start_time_seconds_;
  std::atomic<bool> draining_{false};
  absl::Mutex mutex_;
  absl::CondVar call_ended_, stop_;
  int running_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread expirer_;
};

}  // namespace fq
