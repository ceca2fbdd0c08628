#include "client/cpp/session_stream.h"

#include <utility>

#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

constexpr absl::Duration kGoodbye = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<std::shared_ptr<SessionStream>> SessionStream::Open(
    const std::shared_ptr<grpc::Channel>& channel, const flashquant::v1::SessionRequest& request,
    absl::Time deadline) {
  std::shared_ptr<SessionStream> stream(new SessionStream(request));
  stream->Start(channel, stream);
  absl::Status status = stream->WaitUntilOpen(deadline);
  if (status.ok()) return stream;
  if (absl::IsDeadlineExceeded(status)) stream->context_.TryCancel();
  stream->RemoveHold();
  if (absl::IsDeadlineExceeded(status)) return status;
  return stream->WaitUntilDone(deadline);  // the node said why
}

// The hold keeps gRPC from finishing before Close, which writes from outside a reaction.
void SessionStream::Start(const std::shared_ptr<grpc::Channel>& channel,
                          std::shared_ptr<SessionStream> self) {
  {
    absl::MutexLock lock(&mu_);
    self_ = std::move(self);
  }
  stub_ = flashquant::v1::KvCache::NewStub(channel);
  stub_->async()->Session(&context_, this);
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

absl::Status SessionStream::WaitUntilDone(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  while (!done_) {
    if (changed_.WaitWithDeadline(&mu_, deadline) && !done_) break;
  }
  if (done_ && !status_.ok()) return status_;
  return absl::UnavailableError("the node ended the session");
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
  std::shared_ptr<SessionStream> self;  // dies after the lock
  absl::MutexLock lock(&mu_);
  done_ = true;
  status_ =
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  changed_.SignalAll();
  self = std::move(self_);
}

void SessionStream::Close() {
  StartWritesDone();
  RemoveHold();
  if (WaitUntilDone(absl::Now() + kGoodbye).code() == absl::StatusCode::kUnavailable) {
    context_.TryCancel();  // no effect on a stream that is done
  }
}

}  // namespace fq::client
