#include "client/cpp/session_keeper.h"

#include <utility>

#include "client/cpp/proto_mapping.h"
#include "kernels/base/status_macros.h"

namespace fq::client {

Session::Keeper::~Keeper() {
  std::unique_ptr<SessionStream> stream;
  {
    absl::MutexLock lock(&mu_);
    stream = std::move(stream_);
  }
  if (stream != nullptr) stream->Close();
}

absl::StatusOr<SessionInfo> Session::Keeper::Get(absl::Time deadline) {
  {
    absl::MutexLock lock(&mu_);
    FQ_RETURN_IF_ERROR(WaitForTurn(deadline));
    if (usable_ && stream_->alive()) return info_;
    opening_ = true;
  }
  absl::StatusOr<std::unique_ptr<SessionStream>> stream = OpenStream(deadline);
  const absl::Status status = stream.ok() ? Adopt(*std::move(stream)) : stream.status();
  absl::MutexLock lock(&mu_);
  opening_ = false;
  opened_.SignalAll();
  FQ_RETURN_IF_ERROR(status);
  return info_;
}

absl::Status Session::Keeper::WaitForTurn(absl::Time deadline) {
  while (opening_) {
    if (!opened_.WaitWithDeadline(&mu_, deadline) || !opening_) continue;
    return absl::DeadlineExceededError("the session was not opened in time");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SessionStream>> Session::Keeper::OpenStream(absl::Time deadline) {
  FQ_RETURN_IF_ERROR(link_->AskBreaker());
  auto stream =
      SessionStream::Open(link_->channel(), ToWire(spec_, link_->options().client_name), deadline);
  link_->Report(stream.status());
  return stream;
}

// Keys made before must stay right, so the node must still see the same namespace and tenant.
absl::Status Session::Keeper::Adopt(std::unique_ptr<SessionStream> stream) {
  absl::StatusOr<SessionInfo> info = FromWire(stream->response());
  absl::Status status = info.status();
  {
    absl::MutexLock lock(&mu_);
    if (status.ok() && stream_ != nullptr &&
        (info->fingerprint != info_.fingerprint || info->tenant != info_.tenant)) {
      status = absl::FailedPreconditionError(
          "the node came back with another tenant or namespace; open a new session");
    }
    if (status.ok()) {
      std::swap(stream_, stream);
      info_ = *std::move(info);
      calls_ =
          info_.call_socket.empty() ? nullptr : std::make_shared<CallSocket>(info_.call_socket);
      usable_ = true;
      registered_.clear();
      stale_.clear();
    }
  }
  if (stream != nullptr) stream->Close();
  return status;
}

bool Session::Keeper::Current(const SessionInfo& info) const {
  return info_.session_id == info.session_id;
}

absl::StatusOr<SegmentUse> Session::Keeper::Use(const SessionInfo& info, const Segment* segment,
                                                absl::Time deadline) {
  if (segment == nullptr) return SegmentUse{};
  if (info.segment_socket.empty()) {
    return absl::FailedPreconditionError("the node is remote: it takes no segment, send inline");
  }
  const Segment::Current current = segment->current();
  {
    absl::MutexLock lock(&mu_);
    const auto it = registered_.find(segment);
    if (Current(info) && it != registered_.end()) {
      if (it->second.generation == current.generation)
        return SegmentUse{it->second.id, current.generation};
      stale_.push_back(it->second.id);
      registered_.erase(it);
    }
  }
  const SegmentDoor door{info.segment_socket, info.session_id};
  for (uint32_t id : TakeStale(info)) {
    FQ_RETURN_IF_ERROR(UnregisterSegment(door, id, deadline));
  }
  FQ_ASSIGN_OR_RETURN(const uint32_t id,
                      RegisterSegment(door, *current.fd, segment->memory().size(), deadline));
  absl::MutexLock lock(&mu_);
  if (Current(info)) registered_[segment] = {id, current.generation};
  return SegmentUse{id, current.generation};
}

std::vector<uint32_t> Session::Keeper::TakeStale(const SessionInfo& info) {
  absl::MutexLock lock(&mu_);
  if (!Current(info)) return {};
  return std::exchange(stale_, {});
}

absl::Status Session::Keeper::Forget(const SessionInfo& info, const Segment& segment,
                                     absl::Time deadline) {
  uint32_t id = 0;
  {
    absl::MutexLock lock(&mu_);
    const auto it = registered_.find(&segment);
    if (!Current(info) || it == registered_.end()) return absl::OkStatus();
    id = it->second.id;
    registered_.erase(it);
  }
  return UnregisterSegment({info.segment_socket, info.session_id}, id, deadline);
}

absl::StatusOr<grpc::ByteBuffer> Session::Keeper::Call(const SessionInfo& info, const char* method,
                                                       std::optional<CallKind> kind,
                                                       grpc::ByteBuffer request,
                                                       absl::Time deadline) {
  std::shared_ptr<CallSocket> calls;
  if (kind.has_value()) {
    absl::MutexLock lock(&mu_);
    if (Current(info)) calls = calls_;
  }
  return link_->Call(method, std::move(request), deadline,
                     {calls.get(), kind.value_or(CallKind::kLookup)});
}

absl::Status Session::Keeper::Judge(absl::Status outcome, const SessionInfo& info, Segment* segment,
                                    const SegmentUse& use) {
  if (absl::IsUnauthenticated(outcome)) {
    absl::MutexLock lock(&mu_);
    if (Current(info)) usable_ = false;
  }
  if (segment == nullptr) return outcome;
  if (NoAnswer(outcome)) {
    const absl::Status replaced = segment->Replace(use.generation);
    return replaced.ok() ? outcome : replaced;
  }
  if (outcome.ok() && segment->generation() != use.generation) {
    return absl::AbortedError("another call that used the segment got no answer: it was replaced");
  }
  return outcome;
}

SessionInfo Session::Keeper::info() const {
  absl::MutexLock lock(&mu_);
  return info_;
}

}  // namespace fq::client
