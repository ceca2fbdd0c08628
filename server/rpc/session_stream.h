// One Session stream: its first message opens a session, its end closes it. gRPC calls it from its
// own threads.
#pragma once

#include <memory>

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/node.h"
#include "server/rpc/wire.h"

namespace fq {

// Deletes itself when gRPC is done with it.
class SessionStream : public grpc::ServerBidiReactor<wire::SessionRequest, wire::SessionResponse> {
 public:
  SessionStream(Node* node, grpc::CallbackServerContext* context);

  void OnReadDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  absl::Status Open();
  void FillResponse(const std::string& tenant, bool local);
  void LogEvent(const char* event) const;
  void End(const absl::Status& status);

  Node* const node_;
  grpc::CallbackServerContext* const context_;
  wire::SessionRequest request_;
  wire::SessionResponse response_;
  std::shared_ptr<Session>
      session_;  // the session registry holds it too; set by the first read, cleared by OnDone
  std::string client_name_, address_;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace fq
