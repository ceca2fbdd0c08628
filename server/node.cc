#include "server/node.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/backend.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

SessionLimits SessionLimitsOf(const Options& options) {
  return {options.max_sessions, options.max_leases_per_session, Milliseconds(options.lease_ms),
          SegmentLimits{options.max_segments, options.max_segment_bytes}};
}

uint32_t WorkersOf(const Options& options) {
  return options.workers != 0 ? options.workers : std::max(1u, std::thread::hardware_concurrency());
}

absl::Status LoadCodecSets(const Options& options,
                           std::vector<std::shared_ptr<const CodecSet>>& sets) {
  for (const std::string& path : options.codec_sets) {
    auto set = CodecSet::Load(path);
    if (!set.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--codec-set = ", path, ": ", set.status().message()));
    }
    sets.push_back(*std::move(set));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Node>> Node::Create(const Options& options, NodeParts parts) {
  FQ_RETURN_IF_ERROR(CheckOptions(options));
  FQ_RETURN_IF_ERROR(LoadCodecSets(options, parts.codec_sets));
  StoreOptions store_options;
  store_options.capacity_bytes = options.host_bytes;
  FQ_ASSIGN_OR_RETURN(auto store, Store::Create(store_options));
  return std::unique_ptr<Node>(new Node(options, std::move(parts), std::move(store)));
}

Node::Node(const Options& options, NodeParts parts, std::unique_ptr<Store> store)
    : options_(options),
      log_(parts.log),
      store_(std::move(store)),
      namespaces_(std::make_unique<NamespaceRegistry>(
          NamespaceLimits{options.max_namespaces, options.max_ranges_per_namespace},
          std::move(parts.codec_sets), CpuBackend())),
      sessions_(std::make_unique<SessionRegistry>(SessionLimitsOf(options), parts.clock)),
      workers_(std::make_unique<WorkerPool>(WorkersOf(options), options.queue_depth)),
      quality_({options.quality_sample, options.quality_drift_ratio}, &metrics_, log_, parts.clock),
      page_path_(std::make_unique<PagePath>(store_.get(), workers_.get(), &metrics_, &quality_)),
      start_time_seconds_(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())) {
  metrics_.SetSampler([this] { return Sample(); });
  expirer_ = std::thread([this] { ExpireLeasesUntilStopped(); });
}

Node::~Node() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.SignalAll();
  }
  expirer_.join();
  workers_.reset();
}

NodeSample Node::Sample() {
  NodeSample sample;
  sample.store = store_->Stats();
  sample.connections = static_cast<double>(peers_.size());
  for (const auto& session : sessions_->All()) {
    sample.sessions += 1;
    sample.leases += static_cast<double>(session->leases.size());
    sample.segments += static_cast<double>(session->segments.size());
  }
  sample.namespaces = static_cast<double>(namespaces_->size());
  sample.queued_calls = static_cast<double>(workers_->queued());
  sample.draining = draining_ ? 1 : 0;
  sample.encode_bytes_per_second = page_path_->encode_rate().bytes_per_second();
  sample.decode_bytes_per_second = page_path_->decode_rate().bytes_per_second();
  const ProfileQuality near_lossless = namespaces_->WorstQuality(Profile::kNearLossless);
  const ProfileQuality compact = namespaces_->WorstQuality(Profile::kCompact);
  sample.near_lossless_error_ratio = near_lossless.error_ratio;
  sample.compact_error_ratio = compact.error_ratio;
  sample.near_lossless_drift = near_lossless.drift;
  sample.compact_drift = compact.drift;
  sample.checked_codec_sets = static_cast<double>(namespaces_->CodecSets(true));
  sample.unchecked_codec_sets = static_cast<double>(namespaces_->CodecSets(false));
  sample.start_time_seconds = start_time_seconds_;
  absl::MutexLock lock(&mutex_);
  sample.running_calls = running_calls_;
  return sample;
}

absl::Status Node::CheckAccepting() const {
  return draining_ ? absl::UnavailableError("the node is draining") : absl::OkStatus();
}

void Node::BeginCall() {
  absl::MutexLock lock(&mutex_);
  ++running_calls_;
}

void Node::EndCall() {
  absl::MutexLock lock(&mutex_);
  --running_calls_;
  call_ended_.SignalAll();
}

bool Node::WaitIdle(Milliseconds limit) {
  const MonotonicTime end = SteadyNow() + limit;
  absl::MutexLock lock(&mutex_);
  while (running_calls_ != 0 && SteadyNow() < end) {
    call_ended_.WaitWithTimeout(&mutex_, absl::FromChrono(end - SteadyNow()));
  }
  return running_calls_ == 0;
}

void Node::ExpireLeasesUntilStopped() {
  const absl::Duration period =
      absl::Milliseconds(std::clamp<uint32_t>(options_.lease_ms / 4, 5, 500));
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (!stopping_) stop_.WaitWithTimeout(&mutex_, period);
      if (stopping_) return;
    }
    metrics_.Add(Metric::kLeasesExpired, {}, static_cast<double>(sessions_->ExpireLeases()));
  }
}

}  // namespace fq
