#include "client/cpp/session_stream.h"

#include <utility>

#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

constexpr absl::Duration kGoodbye = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStream>> SessionStream::Open(
    const std::shared_ptr<grpc::Channel>& channel, const flashquant::v1::SessionRequest& request,
    absl::Time deadline) {
  std::unique_ptr<SessionStream> stream(new SessionStream(request));
  stream->Start(channel);
  const absl::Status status = stream->WaitUntilOpen(deadline);
  if (status.ok()) return stream;
  const absl::Status end = stream->Finish(deadline);  // the node may say why
  return absl::IsDeadlineExceeded(status) || end.ok() ? status : end;
}

// The hold keeps gRPC from finishing before Finish, so that Close may write.
void SessionStream::Start(const std::shared_ptr<grpc::Channel>& channel) {
  flashquant::v1::KvCache::NewStub(channel)->async()->Session(&context_, this);
  AddHold();
  StartWrite(&request_);
  StartRead(&response_);
  StartCall();
}

absl::Status SessionStream::WaitUntilOpen(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  while (!open_ && reading_) {
    if (!changed_.WaitWithDeadline(&mu_, deadline) || open_ || !reading_) continue;
    return absl::DeadlineExceededError("the node did not open the session in time");
  }
  return open_ ? absl::OkStatus() : absl::UnavailableError("the node refused the session");
}

absl::Status SessionStream::Finish(absl::Time deadline) {
  RemoveHold();
  absl::MutexLock lock(&mu_);
  while (!done_) {
    if (!changed_.WaitWithDeadline(&mu_, deadline) || done_) continue;
    context_.TryCancel();
    while (!done_) changed_.Wait(&mu_);
  }
  return status_;
}

bool SessionStream::alive() const {
  absl::MutexLock lock(&mu_);
  return open_ && reading_;
}

void SessionStream::OnReadDone(bool ok) {
  {
    absl::MutexLock lock(&mu_);
    open_ = open_ || ok;
    reading_ = ok;
    changed_.SignalAll();
  }
  if (ok) StartRead(&later_);
}

void SessionStream::OnDone(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  done_ = true;
  status_ =
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  changed_.SignalAll();
}

void SessionStream::Close() {
  StartWritesDone();
  Finish(absl::Now() + kGoodbye).IgnoreError();
}

}  // namespace fq::client
