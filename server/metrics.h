// Every metric of the node: one table of name, kind, unit and help (metrics.cc). All series exist
// from the start. Thread-safe. Labels come from closed sets: never a key, a request's text or an
// address.
#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "server/store/store.h"

namespace fq {

// Rows of the table that are counted where things happen.
enum class Metric {
  kRequests,            // method, code
  kRequestSeconds,      // method
  kBlocksStored,        // profile, result
  kBlocksLoaded,        // profile
  kBlocksMissed,        // reason
  kLookupBlocks,        // result
  kAttendBlocks,        //
  kRawBytes,            // direction
  kCodedBytes,          // direction
  kTailRefinements,     //
  kSegmentRequests,     // operation, result
  kLeasesExpired,       //
  kConnectionsRefused,  // reason
  kLookupsBelowFloor,   // profile
  kQualitySamples,      // profile
  kBlocksBeyond,        // operation, length
  kTransportBlocks,     // operation, transport
  kPeerLinksBroken,     // reason
  kPeerBytes,           // direction
  kFetchedBlocks,       // result
  kFetchedBytes,        // transport
  kFetchesStopped,      // reason
};

// What is read off the node when somebody asks.
struct NodeSample {
  StoreStats store;   // of the host tier
  StoreStats device;  // of the device tier
  double demoted_blocks = 0, demoted_bytes = 0, promoted_blocks = 0;
  double failed_demotions = 0, room_waits = 0;
  double device_launches = 0, device_calls = 0;
  double device_ipc_segments = 0, device_descriptor_segments = 0;
  double peer_links = 0;
  double connections = 0, sessions = 0, leases = 0, namespaces = 0, segments = 0;
  double queued_calls = 0, running_calls = 0, draining = 0;
  double encode_bytes_per_second = 0, decode_bytes_per_second = 0;
  double near_lossless_error_ratio = 0, compact_error_ratio = 0;  // 0: nothing measured
  double near_lossless_drift = 0, compact_drift = 0;              // 0 or 1
  double checked_codec_sets = 0, unchecked_codec_sets = 0;
  double start_time_seconds = 0;
};

class Metrics : public prometheus::Collectable {
 public:
  Metrics();

  // Adds to a counter, or observes a value of a histogram. Labels in the order of the table; a
  // combination that the table does not know is dropped.
  void Add(Metric metric, std::initializer_list<absl::string_view> labels, double amount) const;

  // Called once, before the first Collect. `sample` may be called from any thread.
  void SetSampler(std::function<NodeSample()> sample) { sample_ = std::move(sample); }

  std::vector<prometheus::MetricFamily> Collect() const override;

  // All values by name, labels in the name; of histograms sum and count.
  std::map<std::string, double> Values() const;

 private:
  prometheus::Registry registry_;
  absl::flat_hash_map<std::string, prometheus::Counter*> counters_;
  absl::flat_hash_map<std::string, prometheus::Histogram*> histograms_;
  std::function<NodeSample()> sample_;
};

}  // namespace fq
