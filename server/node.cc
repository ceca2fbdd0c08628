#include "server/node.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/memory/ahead_space.h"
#ifdef FQ_HAVE_CUDA
#include "kernels/cuda/cuda_device.h"
#include "server/peers/nccl_comm.h"
#endif

namespace fq {
namespace {

SessionLimits SessionLimitsOf(const Options& options) {
  return {options.max_sessions, options.max_leases_per_session, Milliseconds(options.lease_ms),
          SegmentLimits{options.max_segments, options.max_segment_bytes}};
}

uint32_t WorkersOf(const Options& options) {
  return options.workers != 0 ? options.workers : std::max(1u, std::thread::hardware_concurrency());
}

// The GPU of --device; errors name the option.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const Options& options) {
#ifdef FQ_HAVE_CUDA
  CudaDeviceOptions cuda;
  FQ_CHECK(absl::SimpleAtoi(options.device, &cuda.ordinal));  // CheckOptions has passed
  cuda.background_percent = static_cast<int>(options.device_sm_percent);
  auto device = OpenCudaDevice(cuda);
  if (device.ok()) return device;
  return absl::Status(device.status().code(),
                      absl::StrCat("--device = ", options.device, ": ", device.status().message()));
#else
  return absl::FailedPreconditionError(
      absl::StrCat("--device = ", options.device, ": this node was built without CUDA"));
#endif
}

PeerLimits PeerLimitsOf(const Options& options) {
  return {options.max_peer_links, options.peer_window_bytes,
          std::min(options.peer_window_bytes, options.max_segment_bytes),
          Milliseconds(options.peer_timeout_ms), options.nccl_ctas};
}

// The GPU of --device and the NCCL of --nccl, as far as `parts` does not bring its own.
absl::Status OpenGpu(const Options& options, NodeParts& parts) {
#ifdef FQ_HAVE_CUDA
  if (!options.nccl.empty()) PrepareNcclEnvironment();
#endif
  if (parts.device == nullptr && !options.device.empty()) {
    FQ_ASSIGN_OR_RETURN(parts.device, OpenDevice(options));
  }
#ifdef FQ_HAVE_CUDA
  if (parts.peers == nullptr && !options.nccl.empty()) {
    NcclOptions nccl{options.nccl, 0, static_cast<int>(options.nccl_ctas)};
    FQ_CHECK(absl::SimpleAtoi(options.device, &nccl.ordinal));  // CheckOptions has passed
    absl::StatusOr<std::unique_ptr<PeerTransport>> peers = OpenNccl(nccl);
    if (!peers.ok()) {
      return absl::Status(peers.status().code(),
                          absl::StrCat("--nccl = ", peers.status().message()));
    }
    parts.peers = *std::move(peers);
  }
#endif
  return absl::OkStatus();
}

// Pinned memory is the machine's: what is ahead is missing there. The device's is taken already, so
// more may be, and what is ahead for the wrong size costs that size's unmapping only.
constexpr uint64_t kPinnedAheadBytes = uint64_t{2} << 30;
constexpr uint64_t kDeviceAheadShare = 4;

absl::StatusOr<std::unique_ptr<Tiers>> MakeTiers(const Options& options, Device* device) {
  StoreOptions host, on_device;
  host.capacity_bytes = options.host_bytes;
  if (device == nullptr) return Tiers::Create({std::move(host)});
  host.space = CreateAheadSpace(device->CreatePinnedSpace(options.host_bytes),
                                {options.host_bytes, kPinnedAheadBytes});
  on_device.capacity_bytes = options.device_bytes;
  FQ_ASSIGN_OR_RETURN(auto space, device->CreateSpace(options.device_bytes));
  on_device.space = CreateAheadSpace(
      std::move(space), {options.device_bytes, options.device_bytes / kDeviceAheadShare});
  TiersOptions tiers{std::move(host), std::move(on_device)};
  for (int i = 0; i < 2; ++i) {
    FQ_ASSIGN_OR_RETURN(auto queue, device->CreateQueue(false));
    tiers.moves.push_back(std::move(queue));
  }
  tiers.most_waiting = WorkersOf(options) / 2;  // stores that wait leave workers to loads
  return Tiers::Create(std::move(tiers));
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
  FQ_RETURN_IF_ERROR(OpenGpu(options, parts));
  FQ_ASSIGN_OR_RETURN(auto tiers, MakeTiers(options, parts.device.get()));
  std::unique_ptr<DeviceScheduler> scheduler;
  if (parts.device != nullptr) {
    FQ_ASSIGN_OR_RETURN(scheduler, DeviceScheduler::Create(parts.device.get(), {}));
  }
  return std::unique_ptr<Node>(
      new Node(options, std::move(parts), std::move(scheduler), std::move(tiers)));
}

Node::Node(const Options& options, NodeParts parts, std::unique_ptr<DeviceScheduler> scheduler,
           std::unique_ptr<Tiers> tiers)
    : options_(options),
      log_(parts.log),
      device_(std::move(parts.device)),
      tiers_(std::move(tiers)),
      namespaces_(std::make_unique<NamespaceRegistry>(
          NamespaceLimits{options.max_namespaces, options.max_ranges_per_namespace},
          std::move(parts.codec_sets), CpuBackend(), device_.get())),
      sessions_(std::make_unique<SessionRegistry>(SessionLimitsOf(options), parts.clock)),
      scheduler_(std::move(scheduler)),
      workers_(std::make_unique<WorkerPool>(WorkersOf(options), options.queue_depth)),
      fetchers_(
          std::make_unique<WorkerPool>(options.max_fetches, options.max_fetches, "max-fetches")),
      quality_({options.quality_sample, options.quality_drift_ratio}, &metrics_, log_, parts.clock),
      page_path_(std::make_unique<PagePath>(tiers_.get(), scheduler_.get(), workers_.get(),
                                            &metrics_, &quality_, log_)),
      start_time_seconds_(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())) {
  if (parts.peers != nullptr) {
    peer_links_ = std::make_unique<PeerLinks>(device_.get(), std::move(parts.peers),
                                              PeerLimitsOf(options_), &metrics_, log_, parts.clock);
  }
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
  peer_links_.reset();
  fetchers_.reset();
  workers_.reset();
}

NodeSample Node::Sample() {
  NodeSample sample;
  const TierStats tiers = tiers_->Stats();
  sample.store = tiers.host;
  if (tiers_->has_device()) sample.device = tiers.device;  // zeros when it has failed
  sample.demoted_blocks = static_cast<double>(tiers.demoted_slabs);
  sample.demoted_bytes = static_cast<double>(tiers.demoted_bytes);
  sample.failed_demotions = static_cast<double>(tiers.failed_demotions);
  sample.room_waits = static_cast<double>(tiers.waits);
  sample.promoted_blocks = static_cast<double>(tiers.promoted_slabs);
  if (scheduler_ != nullptr) {
    sample.device_launches = static_cast<double>(scheduler_->Stats().launches);
    sample.device_calls = static_cast<double>(scheduler_->Stats().calls);
  }
  if (peer_links_ != nullptr) sample.peer_links = static_cast<double>(peer_links_->Reap());
  sample.connections = static_cast<double>(peers_.size());
  for (const auto& session : sessions_->All()) {
    sample.sessions += 1;
    sample.leases += static_cast<double>(session->leases.size());
    const SegmentTable& segments = session->segments;
    sample.segments += static_cast<double>(segments.size());
    sample.device_ipc_segments +=
        static_cast<double>(segments.device_segments(ShareKind::kIpcHandle));
    sample.device_descriptor_segments +=
        static_cast<double>(segments.device_segments(ShareKind::kFileDescriptor));
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
    if (peer_links_ != nullptr) peer_links_->Reap();
    metrics_.Add(Metric::kLeasesExpired, {}, static_cast<double>(sessions_->ExpireLeases()));
  }
}

}  // namespace fq
