#include "server/rpc/admin_service.h"

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/identity.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_session.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

using Method = CallRunner::Method;
#ifdef FQ_HAVE_CUDA
constexpr char kGpus[] = "CUDA";
#else
constexpr char kGpus[] = "no CUDA";  // built where no nvcc is: --device is refused
#endif
constexpr Method kStatus = {"Status", Method::Place::kHere, Method::Deadline::kCapped};
constexpr Method kNamespaces = {"Namespaces", Method::Place::kWorker, Method::Deadline::kCallers};
constexpr Method kVerify = {"Verify", Method::Place::kWorker, Method::Deadline::kCallers};
constexpr Method kPurge = {"Purge", Method::Place::kWorker, Method::Deadline::kCallers};

void FillLoss(const MeasuredLoss& loss, wire::NamespaceInfo::Loss& message) {
  message.set_perplexity_excess_percent(loss.perplexity_excess_percent);
  message.set_standard_error_percent(loss.standard_error_percent);
  message.set_kl_divergence(loss.kl_divergence);
  message.set_bits_per_value(loss.bits_per_value);
  message.set_top1_agreement_percent(loss.top1_agreement_percent);
  message.set_tokens(static_cast<uint64_t>(loss.tokens));
  message.set_text(loss.text);
}

// What the codec set says it costs, and what the node has measured of it.
void FillQuality(const NamespaceView& view, wire::NamespaceInfo& info) {
  const CodecSet& set = *view.codec_set;
  FillLoss(set.compact_loss(), *info.mutable_compact());
  FillLoss(set.near_lossless_loss(), *info.mutable_near_lossless());
  info.set_calibrated_tokens(static_cast<uint32_t>(set.calibrated_tokens()));
  for (const LossAtLength& entry : set.loss_by_length()) {
    wire::NamespaceInfo::LossAtLength& message = *info.add_loss_by_length();
    message.set_profile(entry.profile);
    FillLoss(entry.loss, *message.mutable_loss());
  }
  info.set_has_expected_error(!set.expected_error().compact.empty());
  for (Profile profile : kCalibratedProfiles) {
    const ProfileQuality measured = view.quality->Of(profile);
    wire::NamespaceInfo::Quality& message = *info.add_quality();
    message.set_profile(ProfileName(profile));
    message.set_samples(measured.samples);
    message.set_error_ratio(measured.error_ratio);
    message.set_drift(measured.drift);
  }
}

std::vector<SlabKey> KeysOf(const Tiers& tiers, const SlabSpace& space) {
  std::vector<SlabKey> keys;
  tiers.ForEachKey(space.scope, [&](const SlabKey& key) { keys.push_back(key); });
  return keys;
}

absl::flat_hash_set<SlabKey> LeasedKeys(SessionRegistry& sessions, const SlabSpace& space) {
  absl::flat_hash_set<SlabKey> leased;
  for (const auto& session : sessions.All()) {
    if (session->space->scope != space.scope) continue;
    for (const auto& lease : session->leases.Snapshot()) {
      for (const Pin& pin : lease->pins) leased.insert(pin.key());
    }
  }
  return leased;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Status(grpc::CallbackServerContext* context,
                                               const wire::StatusRequest*,
                                               wire::StatusResponse* response) {
  return runner_.Run(context, kStatus, [=](const CallContext&) -> absl::Status {
    const NodeSample sample = node_->Sample();
    response->set_version(FQ_VERSION);
    response->set_build(absl::StrCat(FQ_COMPILER, ", ", CpuBackend()->name(), ", ", kGpus));
    response->set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()) -
                                 sample.start_time_seconds);
    response->set_state(node_->draining() ? wire::StatusResponse::STATE_DRAINING
                                          : wire::StatusResponse::STATE_SERVING);
    response->set_host_capacity_bytes(sample.store.capacity_bytes);
    response->set_host_used_bytes(sample.store.used_bytes);
    response->set_blocks(sample.store.slabs);
    response->set_sessions(static_cast<uint64_t>(sample.sessions));
    response->set_leases(static_cast<uint64_t>(sample.leases));
    const auto values = node_->metrics().Values();
    response->mutable_counters()->insert(values.begin(), values.end());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::Namespaces(grpc::CallbackServerContext* context,
                                                   const wire::NamespacesRequest* request,
                                                   wire::NamespacesResponse* response) {
  return runner_.Run(context, kNamespaces, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(auto views, Find(*context, request->name()));
    for (const NamespaceView& view : views) {
      FQ_RETURN_IF_ERROR(FillInfo(call, view, *response->add_namespaces()));
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::Verify(grpc::CallbackServerContext* context,
                                               const wire::VerifyRequest* request,
                                               wire::VerifyResponse* response) {
  return runner_.Run(context, kVerify, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(auto views, Find(*context, request->namespace_name()));
    for (const NamespaceView& view : views) {
      for (const auto& space : view.spaces) {
        FQ_RETURN_IF_ERROR(VerifySpace(call, *space, *response));
      }
    }
    node_->log().Write(LogLevel::kInfo, "verified",
                       {{"namespace", request->namespace_name()},
                        {"blocks", absl::StrCat(response->blocks())},
                        {"failed", absl::StrCat(response->failed())}});
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::Purge(grpc::CallbackServerContext* context,
                                              const wire::PurgeRequest* request,
                                              wire::PurgeResponse* response) {
  return runner_.Run(context, kPurge, [=](const CallContext& call) -> absl::Status {
    FQ_RETURN_IF_ERROR(CheckNamespaceName(request->namespace_name()));
    FQ_ASSIGN_OR_RETURN(auto views, Find(*context, request->namespace_name()));
    for (const NamespaceView& view : views) {
      for (const auto& space : view.spaces) {
        FQ_RETURN_IF_ERROR(PurgeSpace(call, *space, *response));
      }
    }
    node_->log().Write(LogLevel::kInfo, "purged",
                       {{"namespace", request->namespace_name()},
                        {"blocks", absl::StrCat(response->blocks())},
                        {"bytes", absl::StrCat(response->bytes())}});
    return absl::OkStatus();
  });
}

absl::StatusOr<std::vector<NamespaceView>> AdminService::Find(
    const grpc::CallbackServerContext& context, const std::string& name) const {
  if (!name.empty()) FQ_RETURN_IF_ERROR(CheckNamespaceName(name));
  FQ_ASSIGN_OR_RETURN(Caller caller, CallerOf(context, *node_));
  return node_->namespaces().List(caller.tenant, name);
}

absl::Status AdminService::FillInfo(const CallContext& call, const NamespaceView& view,
                                    wire::NamespaceInfo& info) const {
  info.set_name(view.name);
  FillDescriptor(view.descriptor, *info.mutable_namespace_descriptor());
  info.set_fingerprint(ToBytes(FingerprintOf(view.descriptor)));
  if (view.codec_set != nullptr) FillQuality(view, info);
  for (const auto& space : view.spaces) {
    for (const SlabKey& key : KeysOf(node_->tiers(), *space)) {
      FQ_RETURN_IF_ERROR(call.Check());
      Pin pin = node_->tiers().Peek(key);
      if (!pin) continue;
      info.set_blocks(info.blocks() + 1);
      info.set_stored_bytes(info.stored_bytes() + pin.stored_bytes());
      info.set_raw_bytes(info.raw_bytes() + DenseBlockBytes(space->shape()));
      ++(*info.mutable_blocks_by_profile())[ProfileName(DeliveredProfile(pin))];
    }
  }
  return absl::OkStatus();
}

absl::Status AdminService::VerifySpace(const CallContext& call, const SlabSpace& space,
                                       wire::VerifyResponse& response) const {
  for (const SlabKey& key : KeysOf(node_->tiers(), space)) {
    FQ_RETURN_IF_ERROR(call.Check());
    Pin pin = node_->tiers().Peek(key);
    if (!pin) continue;
    response.set_blocks(response.blocks() + 1);
    response.set_bytes(response.bytes() + pin.primary().size() + pin.refinement().size());
    if (!node_->page_path().VerifyBlock(space, pin).ok())
      response.set_failed(response.failed() + 1);
  }
  return absl::OkStatus();
}

absl::Status AdminService::PurgeSpace(const CallContext& call, const SlabSpace& space,
                                      wire::PurgeResponse& response) const {
  const absl::flat_hash_set<SlabKey> leased = LeasedKeys(node_->sessions(), space);
  for (const SlabKey& key : KeysOf(node_->tiers(), space)) {
    FQ_RETURN_IF_ERROR(call.Check());
    if (leased.contains(key)) continue;
    Pin pin = node_->tiers().Peek(key);
    if (!pin || !node_->tiers().Erase(key)) continue;
    response.set_blocks(response.blocks() + 1);
    response.set_bytes(response.bytes() + pin.stored_bytes());
  }
  return absl::OkStatus();
}

}  // namespace fq
