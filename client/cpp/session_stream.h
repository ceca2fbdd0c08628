// The stream that keeps a session: open it, watch it, end it. When it ends, the node has freed all
// that the session held. Thread-safe.
#pragma once

#include <memory>

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "flashquant/v1/kv_cache.grpc.pb.h"

namespace fq::client {

class SessionStream : public grpc::ClientBidiReactor<flashquant::v1::SessionRequest,
                                                     flashquant::v1::SessionResponse> {
 public:
  // Waits for the node's answer, at most until `deadline`. Errors: those of the Session RPC.
  static absl::StatusOr<std::unique_ptr<SessionStream>> Open(
      const std::shared_ptr<grpc::Channel>& channel, const flashquant::v1::SessionRequest& request,
      absl::Time deadline);

  // False when the node ended it, or the connection broke.
  bool alive() const ABSL_LOCKS_EXCLUDED(mu_);
  const flashquant::v1::SessionResponse& response() const { return response_; }

  // Tells the node that we leave; waits a moment for its answer, then leaves anyway. Call it once
  // on each stream that Open gave, before letting go of it.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  explicit SessionStream(const flashquant::v1::SessionRequest& request) : request_(request) {}
  void Start(const std::shared_ptr<grpc::Channel>& channel);
  absl::Status WaitUntilOpen(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // Lets gRPC finish and waits for it: until `deadline` for the node's own end of the stream, then
  // it is cancelled, which needs no node. gRPC does not know us any more afterwards.
  absl::Status Finish(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mu_);

  grpc::ClientContext context_;
  const flashquant::v1::SessionRequest request_;
  flashquant::v1::SessionResponse response_;  // written before open_
  flashquant::v1::SessionResponse later_;
  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_ ABSL_GUARDED_BY(mu_) = true;  // the node has not closed its half
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace fq::client
