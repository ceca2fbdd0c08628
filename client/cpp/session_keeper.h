// Keeps a session open: opens it, notices its end, opens it again, and registers segments with it.
// Thread-safe; waits outside its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/call_socket.h"
#include "client/cpp/node_link.h"
#include "client/cpp/session.h"
#include "client/cpp/session_stream.h"

namespace fq::client {

// A segment as one call uses it.
struct SegmentUse {
  uint32_t id = 0;  // 0: inline
  uint64_t generation = 0;
};

class Session::Keeper {
 public:
  Keeper(std::shared_ptr<NodeLink> link, const SessionSpec& spec)
      : link_(std::move(link)), spec_(spec) {}
  ~Keeper();

  // The open session, opened now if need be.
  absl::StatusOr<SessionInfo> Get(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // Registers `segment` with the session `id` unless it is. Null: inline.
  absl::StatusOr<SegmentUse> Use(const SessionInfo& info, const Segment* segment,
                                 absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Forget(const SessionInfo& info, const Segment& segment, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  // A call of the session `info`: over its call socket where there is one and `kind` is given.
  absl::StatusOr<grpc::ByteBuffer> Call(const SessionInfo& info, const char* method,
                                        std::optional<CallKind> kind, grpc::ByteBuffer request,
                                        absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // Looks at the outcome of a call: a session that the node does not know is opened again by the
  // next call, and a segment that a silent node may still use is replaced.
  absl::Status Judge(absl::Status outcome, const SessionInfo& info, Segment* segment,
                     const SegmentUse& use) ABSL_LOCKS_EXCLUDED(mu_);

  NodeLink& link() const { return *link_; }
  const SessionSpec& spec() const { return spec_; }
  SessionInfo info() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Registered {
    uint32_t id = 0;
    uint64_t generation = 0;
  };

  absl::Status WaitForTurn(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<SessionStream>> OpenStream(absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Adopt(std::unique_ptr<SessionStream> stream) ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<uint32_t> TakeStale(const SessionInfo& info) ABSL_LOCKS_EXCLUDED(mu_);
  bool Current(const SessionInfo& info) const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<NodeLink> link_;  // the client and its other sessions hold it too
  const SessionSpec spec_;
  mutable absl::Mutex mu_;
  absl::CondVar opened_;
  bool opening_ ABSL_GUARDED_BY(mu_) = false;
  bool usable_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<SessionStream> stream_ ABSL_GUARDED_BY(mu_);
  SessionInfo info_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<CallSocket> calls_ ABSL_GUARDED_BY(mu_);  // calls under way hold it too
  absl::flat_hash_map<const Segment*, Registered> registered_ ABSL_GUARDED_BY(mu_);
  std::vector<uint32_t> stale_ ABSL_GUARDED_BY(mu_);  // ids of memory that was replaced
};

}  // namespace fq::client
