#include "server/metrics.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace fq {
namespace {

using prometheus::MetricType;

struct CountedRow {
  Metric metric;
  const char* name;
  MetricType kind;
  const char* unit;
  const char* labels;  // name=value|value... separated by ';'
  const char* help;
};

constexpr char kMethodsAndCodes[] =
    "method=Session|Store|Lookup|Load|Fetch|Attend|Release|OpenPeerLink|ClosePeerLink|Status|"
    "Namespaces|Verify|Purge;"
    "code=OK|CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|"
    "PERMISSION_DENIED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|ABORTED|OUT_OF_RANGE|UNIMPLEMENTED|"
    "INTERNAL|UNAVAILABLE|DATA_LOSS|UNAUTHENTICATED";

const CountedRow kCounted[] = {
    {Metric::kRequests, "fq_requests_total", MetricType::Counter, "calls", kMethodsAndCodes,
     "Calls answered, by method and status."},
    {Metric::kRequestSeconds, "fq_request_duration_seconds", MetricType::Histogram, "seconds",
     "method=Store|Lookup|Load|Fetch|Attend|Release|OpenPeerLink|ClosePeerLink|Status|Namespaces|"
     "Verify|Purge",
     "Time from arrival of a call to its answer."},
    {Metric::kBlocksStored, "fq_blocks_stored_total", MetricType::Counter, "blocks",
     "profile=exact|near-lossless|compact|universal;result=ok|exists|full|damaged",
     "Blocks that Store was asked to keep, by what became of them."},
    {Metric::kBlocksLoaded, "fq_blocks_loaded_total", MetricType::Counter, "blocks",
     "profile=exact|near-lossless|compact|universal", "Blocks delivered by Load, as delivered."},
    {Metric::kBlocksMissed, "fq_blocks_missed_total", MetricType::Counter, "blocks",
     "reason=check_failed|below_floor|no_room",
     "Leased blocks that Load or Attend did not deliver, by reason."},
    {Metric::kLookupBlocks, "fq_lookup_blocks_total", MetricType::Counter, "blocks",
     "result=hit|miss", "Blocks asked for by Lookup."},
    {Metric::kAttendBlocks, "fq_attend_blocks_total", MetricType::Counter, "blocks", "",
     "Blocks attended to."},
    {Metric::kRawBytes, "fq_raw_bytes_total", MetricType::Counter, "bytes", "direction=store|load",
     "Bytes of pages in callers' memory, encoded or delivered."},
    {Metric::kCodedBytes, "fq_coded_bytes_total", MetricType::Counter, "bytes",
     "direction=store|load", "Bytes of the same pages as slabs."},
    {Metric::kTailRefinements, "fq_tail_refinements_dropped_total", MetricType::Counter, "blocks",
     "", "Refinements dropped because their compact chain grew past them."},
    {Metric::kSegmentRequests, "fq_segment_requests_total", MetricType::Counter, "requests",
     "operation=register|register-device|unregister|other;result=ok|refused",
     "Packets to the segment socket."},
    {Metric::kLeasesExpired, "fq_leases_expired_total", MetricType::Counter, "leases", "",
     "Leases that ended unused."},
    {Metric::kConnectionsRefused, "fq_connections_refused_total", MetricType::Counter,
     "connections", "reason=limit|protocol|flood|timeout|tls",
     "Connections that the node did not take or ended, by reason."},
    {Metric::kLookupsBelowFloor, "fq_lookups_below_floor_total", MetricType::Counter, "lookups",
     "profile=near-lossless|compact|universal",
     "Lookups whose match ended at a block that is held, as this profile, below their floor."},
    {Metric::kQualitySamples, "fq_quality_samples_total", MetricType::Counter, "blocks",
     "profile=near-lossless|compact",
     "Encoded blocks whose error was measured against what their codec set predicts."},
    {Metric::kBlocksBeyond, "fq_blocks_beyond_calibration_total", MetricType::Counter, "blocks",
     "operation=store|load;length=calibrated|twice",
     "Near-lossless and compact blocks that begin beyond the length their codec set was calibrated "
     "at, or beyond twice that (not counted under calibrated as well)."},
    {Metric::kTransportBlocks, "fq_transport_blocks_total", MetricType::Counter, "blocks",
     "operation=store|load;transport=device|nccl|segment|inline",
     "Blocks that Store was asked to keep and Load to deliver, by how their pages come and go: "
     "engines' tensors on the GPU, another GPU by NCCL, shared memory, or the message itself."},
    {Metric::kPeerLinksBroken, "fq_peer_links_broken_total", MetricType::Counter, "links",
     "reason=timeout|failed|call",
     "Peer links that ended before their session did: an operation took too long, NCCL failed, or "
     "a "
     "Store did."},
    {Metric::kPeerBytes, "fq_peer_bytes_total", MetricType::Counter, "bytes",
     "direction=send|receive", "Bytes that went to other GPUs, or came from them, by NCCL."},
    {Metric::kFetchedBlocks, "fq_fetched_blocks_total", MetricType::Counter, "blocks",
     "result=ok|exists|miss|full|below_floor|refused",
     "Blocks that Fetch was asked for, by what became of them; refused: they came and failed a "
     "check."},
    {Metric::kFetchedBytes, "fq_fetched_bytes_total", MetricType::Counter, "bytes",
     "transport=grpc|nccl", "Bytes of slabs that came from other nodes and were published."},
    {Metric::kFetchesStopped, "fq_fetches_stopped_total", MetricType::Counter, "fetches",
     "reason=unreachable|deadline|cancelled|denied|mismatch|limit|malformed",
     "Fetches that did not ask for all their blocks, by reason."},
};

struct SampledRow {
  const char* name;
  MetricType kind;
  const char* unit;
  double (*value)(const NodeSample&);
  const char* help;
  const char* label = "";  // name=value; rows of one name follow each other
};

constexpr char kErrorRatioHelp[] =
    "Error of recent sampled blocks over what their codec set predicts, of the worst namespace; 1 "
    "is as calibrated, 0 nothing measured or nothing predicted.";
constexpr char kDriftHelp[] =
    "1 while the traffic of a namespace does not fit its codec set (--quality-drift-ratio).";
constexpr char kCodecSetsHelp[] =
    "Codec sets loaded; without an expected error their traffic is not checked.";

constexpr char kDeviceSegmentsHelp[] =
    "Engines' tensors on the GPU that are mapped, by how they are shared.";

double Of(uint64_t value) { return static_cast<double>(value); }

const SampledRow kSampled[] = {
    {"fq_store_capacity_bytes", MetricType::Gauge, "bytes",
     [](const NodeSample& s) { return Of(s.store.capacity_bytes); },
     "Host memory that slabs may take."},
    {"fq_store_used_bytes", MetricType::Gauge, "bytes",
     [](const NodeSample& s) { return Of(s.store.used_bytes); }, "Host memory that slabs take."},
    {"fq_store_requested_bytes", MetricType::Gauge, "bytes",
     [](const NodeSample& s) { return Of(s.store.requested_bytes); },
     "Memory that slabs take without rounding of the pool."},
    {"fq_store_blocks", MetricType::Gauge, "blocks",
     [](const NodeSample& s) { return Of(s.store.slabs); }, "Slabs published."},
    {"fq_store_pinned_blocks", MetricType::Gauge, "blocks",
     [](const NodeSample& s) { return Of(s.store.pinned_slabs); },
     "Slabs under a lease or a call."},
    {"fq_store_reserved_blocks", MetricType::Gauge, "blocks",
     [](const NodeSample& s) { return Of(s.store.reserved_slabs); }, "Slabs being filled."},
    {"fq_evicted_blocks_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return Of(s.store.evicted_slabs); }, "Slabs evicted for room."},
    {"fq_evicted_bytes_total", MetricType::Counter, "bytes",
     [](const NodeSample& s) { return Of(s.store.evicted_bytes); }, "Bytes evicted for room."},
    {"fq_dropped_refinements_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return Of(s.store.dropped_refinements); },
     "Refinements dropped, for room or by the tail rule."},
    {"fq_dropped_refinement_bytes_total", MetricType::Counter, "bytes",
     [](const NodeSample& s) { return Of(s.store.dropped_refinement_bytes); },
     "Bytes of refinements dropped."},
    {"fq_store_full_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return Of(s.store.rejected_full); },
     "Reservations refused because everything else is leased."},
    {"fq_device_capacity_bytes", MetricType::Gauge, "bytes",
     [](const NodeSample& s) { return Of(s.device.capacity_bytes); },
     "GPU memory that slabs may take; 0 without a GPU, or when it has failed."},
    {"fq_device_used_bytes", MetricType::Gauge, "bytes",
     [](const NodeSample& s) { return Of(s.device.used_bytes); }, "GPU memory that slabs take."},
    {"fq_device_blocks", MetricType::Gauge, "blocks",
     [](const NodeSample& s) { return Of(s.device.slabs); }, "Slabs in GPU memory."},
    {"fq_device_pinned_blocks", MetricType::Gauge, "blocks",
     [](const NodeSample& s) { return Of(s.device.pinned_slabs); },
     "Slabs in GPU memory under a lease or a call."},
    {"fq_device_evicted_blocks_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return Of(s.device.evicted_slabs); },
     "Slabs that left GPU memory for room without a copy in host memory."},
    {"fq_demoted_blocks_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return s.demoted_blocks; }, "Slabs moved from GPU to host memory."},
    {"fq_demoted_bytes_total", MetricType::Counter, "bytes",
     [](const NodeSample& s) { return s.demoted_bytes; }, "Their bytes."},
    {"fq_failed_demotions_total", MetricType::Counter, "batches",
     [](const NodeSample& s) { return s.failed_demotions; },
     "Batches of slabs that could not be copied from GPU to host memory."},
    {"fq_device_room_waits_total", MetricType::Counter, "waits",
     [](const NodeSample& s) { return s.room_waits; },
     "Times that a call waited for slabs to move to host memory instead of evicting some."},
    {"fq_promoted_blocks_total", MetricType::Counter, "blocks",
     [](const NodeSample& s) { return s.promoted_blocks; },
     "Slabs copied from host to GPU memory because a load wanted them there."},
    {"fq_device_launches_total", MetricType::Counter, "batches",
     [](const NodeSample& s) { return s.device_launches; }, "Batches given to the GPU."},
    {"fq_device_launched_calls_total", MetricType::Counter, "calls",
     [](const NodeSample& s) { return s.device_calls; },
     "Calls, or pieces of large ones, in those batches."},
    {"fq_device_segments", MetricType::Gauge, "segments",
     [](const NodeSample& s) { return s.device_ipc_segments; }, kDeviceSegmentsHelp, "share=ipc"},
    {"fq_device_segments", MetricType::Gauge, "segments",
     [](const NodeSample& s) { return s.device_descriptor_segments; }, kDeviceSegmentsHelp,
     "share=descriptor"},
    {"fq_peer_links", MetricType::Gauge, "links", [](const NodeSample& s) { return s.peer_links; },
     "Peer links to workers on other GPUs."},
    {"fq_connections", MetricType::Gauge, "connections",
     [](const NodeSample& s) { return s.connections; }, "Peers connected."},
    {"fq_sessions", MetricType::Gauge, "sessions", [](const NodeSample& s) { return s.sessions; },
     "Open sessions."},
    {"fq_leases", MetricType::Gauge, "leases", [](const NodeSample& s) { return s.leases; },
     "Leases held."},
    {"fq_namespaces", MetricType::Gauge, "namespaces",
     [](const NodeSample& s) { return s.namespaces; }, "Namespaces known."},
    {"fq_segments", MetricType::Gauge, "segments", [](const NodeSample& s) { return s.segments; },
     "Memory segments mapped."},
    {"fq_queued_calls", MetricType::Gauge, "calls",
     [](const NodeSample& s) { return s.queued_calls; }, "Calls waiting for a worker."},
    {"fq_running_calls", MetricType::Gauge, "calls",
     [](const NodeSample& s) { return s.running_calls; }, "Calls not answered yet."},
    {"fq_draining", MetricType::Gauge, "", [](const NodeSample& s) { return s.draining; },
     "1 while the node drains."},
    {"fq_encode_bytes_per_second", MetricType::Gauge, "bytes per second",
     [](const NodeSample& s) { return s.encode_bytes_per_second; },
     "Coded bytes written by recent Store calls per second of their work."},
    {"fq_decode_bytes_per_second", MetricType::Gauge, "bytes per second",
     [](const NodeSample& s) { return s.decode_bytes_per_second; },
     "Coded bytes read by recent Load calls per second of their work."},
    {"fq_start_time_seconds", MetricType::Gauge, "seconds",
     [](const NodeSample& s) { return s.start_time_seconds; }, "Start of the node, Unix time."},
    {"fq_quality_error_ratio", MetricType::Gauge, "measured / predicted error",
     [](const NodeSample& s) { return s.near_lossless_error_ratio; }, kErrorRatioHelp,
     "profile=near-lossless"},
    {"fq_quality_error_ratio", MetricType::Gauge, "measured / predicted error",
     [](const NodeSample& s) { return s.compact_error_ratio; }, kErrorRatioHelp, "profile=compact"},
    {"fq_quality_drift", MetricType::Gauge, "",
     [](const NodeSample& s) { return s.near_lossless_drift; }, kDriftHelp,
     "profile=near-lossless"},
    {"fq_quality_drift", MetricType::Gauge, "", [](const NodeSample& s) { return s.compact_drift; },
     kDriftHelp, "profile=compact"},
    {"fq_codec_sets", MetricType::Gauge, "codec sets",
     [](const NodeSample& s) { return s.checked_codec_sets; }, kCodecSetsHelp,
     "expected_error=present"},
    {"fq_codec_sets", MetricType::Gauge, "codec sets",
     [](const NodeSample& s) { return s.unchecked_codec_sets; }, kCodecSetsHelp,
     "expected_error=absent"},
};

const prometheus::Histogram::BucketBoundaries kSeconds = {
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3,
    50e-3, 100e-3, 250e-3, 500e-3, 1,    2.5,    5,    10,    30};

struct LabelledSeries {
  std::string key;
  prometheus::Labels labels;
};

// All combinations of a row's label values; the key joins the values.
std::vector<LabelledSeries> SeriesOf(const CountedRow& row) {
  std::vector<LabelledSeries> series = {{std::string(row.name), {}}};
  for (absl::string_view label : absl::StrSplit(row.labels, ';', absl::SkipEmpty())) {
    std::pair<std::string, std::string> parts = absl::StrSplit(label, '=');
    std::vector<LabelledSeries> longer;
    for (const LabelledSeries& one : series) {
      for (absl::string_view value : absl::StrSplit(parts.second, '|')) {
        longer.push_back({absl::StrCat(one.key, "|", value), one.labels});
        longer.back().labels[parts.first] = std::string(value);
      }
    }
    series = std::move(longer);
  }
  return series;
}

const CountedRow& RowOf(Metric metric) { return kCounted[static_cast<size_t>(metric)]; }

prometheus::ClientMetric SampledMetric(const SampledRow& row, const NodeSample& sample) {
  prometheus::ClientMetric metric;
  (row.kind == MetricType::Counter ? metric.counter.value : metric.gauge.value) = row.value(sample);
  if (*row.label == '\0') return metric;
  std::pair<std::string, std::string> label = absl::StrSplit(row.label, '=');
  metric.label = {{label.first, label.second}};
  return metric;
}

prometheus::MetricFamily BuildInfo() {
  prometheus::ClientMetric metric;
  metric.label = {{"version", FQ_VERSION}};
  metric.gauge.value = 1;
  return {"fq_build_info", "What is running.", MetricType::Gauge, {metric}};
}

std::string NameWithLabels(const std::string& name, const prometheus::ClientMetric& metric) {
  if (metric.label.empty()) return name;
  std::string text = absl::StrCat(name, "{");
  for (const auto& label : metric.label) {
    absl::StrAppend(&text, text.back() == '{' ? "" : ",", label.name, "=\"", label.value, "\"");
  }
  return text + "}";
}

}  // namespace

Metrics::Metrics() {
  for (const CountedRow& row : kCounted) {
    for (LabelledSeries& series : SeriesOf(row)) {
      if (row.kind == MetricType::Histogram) {
        auto& family =
            prometheus::BuildHistogram().Name(row.name).Help(row.help).Register(registry_);
        histograms_[series.key] = &family.Add(series.labels, kSeconds);
      } else {
        auto& family = prometheus::BuildCounter().Name(row.name).Help(row.help).Register(registry_);
        counters_[series.key] = &family.Add(series.labels);
      }
    }
  }
}

void Metrics::Add(Metric metric, std::initializer_list<absl::string_view> labels,
                  double amount) const {
  thread_local std::string key;  // calls add some thousand times: its memory stays
  key = RowOf(metric).name;
  for (absl::string_view label : labels) absl::StrAppend(&key, "|", label);
  if (auto it = counters_.find(key); it != counters_.end()) return it->second->Increment(amount);
  if (auto it = histograms_.find(key); it != histograms_.end()) it->second->Observe(amount);
}

std::vector<prometheus::MetricFamily> Metrics::Collect() const {
  std::vector<prometheus::MetricFamily> families = registry_.Collect();
  NodeSample sample = sample_ ? sample_() : NodeSample{};
  for (const SampledRow& row : kSampled) {
    if (families.empty() || families.back().name != row.name) {
      families.push_back({row.name, row.help, row.kind, {}});
    }
    families.back().metric.push_back(SampledMetric(row, sample));
  }
  families.push_back(BuildInfo());
  return families;
}

std::map<std::string, double> Metrics::Values() const {
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : Collect()) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      std::string name = NameWithLabels(family.name, metric);
      if (family.type == MetricType::Histogram) {
        values[NameWithLabels(family.name + "_sum", metric)] = metric.histogram.sample_sum;
        values[NameWithLabels(family.name + "_count", metric)] =
            static_cast<double>(metric.histogram.sample_count);
      } else {
        values[name] = metric.counter.value + metric.gauge.value;
      }
    }
  }
  return values;
}

}  // namespace fq
