// Sessions: what a client process holds on this node. They end with their stream and take leases
// and segments along. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/clock.h"
#include "server/leases.h"
#include "server/namespaces.h"
#include "server/random_id.h"
#include "server/segments.h"

namespace fq {

struct SessionLimits {
  uint32_t max_sessions = 256;
  uint32_t max_leases_per_session = 1024;
  Milliseconds lease_life{10'000};
  SegmentLimits segments;
};

struct Session {
  Session(const RandomId& session_id, std::shared_ptr<const SlabSpace> slab_space,
          std::string tenant_of_owner, Clock clock, const SessionLimits& limits)
      : id(session_id),
        owner(std::move(tenant_of_owner)),
        space(std::move(slab_space)),
        leases(std::move(clock), limits.lease_life, limits.max_leases_per_session),
        segments(limits.segments) {}

  // A node that fetches for a tenant reads its blocks, and no more.
  bool read_only() const { return owner != space->tenant; }

  const RandomId id;
  const std::string owner;                       // tenant of those who may use it
  const std::shared_ptr<const SlabSpace> space;  // the namespace registry holds it too
  LeaseTable leases;
  SegmentTable segments;
};

class SessionRegistry {
 public:
  SessionRegistry(SessionLimits limits, Clock clock);

  // ResourceExhausted: too many sessions.
  absl::StatusOr<std::shared_ptr<Session>> Open(std::shared_ptr<const SlabSpace> space,
                                                std::string owner);

  // Unauthenticated: no such session.
  absl::StatusOr<std::shared_ptr<Session>> Find(const RandomId& id) const;

  // Ends a session: frees its leases and segments; running calls keep what they use until they
  // return.
  void Close(const RandomId& id);

  // Drops expired leases of all sessions; returns how many.
  size_t ExpireLeases();

  std::vector<std::shared_ptr<Session>> All() const;
  size_t size() const;

 private:
  const SessionLimits limits_;
  const Clock clock_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<RandomId, std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fq
