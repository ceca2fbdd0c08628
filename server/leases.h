// Leases of one session: pins on the blocks that a lookup matched, until released, or unused for
// lease_ms, or the session ends. A running call holds the lease itself, so its pins outlive all
// three. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/clock.h"
#include "server/random_id.h"
#include "server/store/store.h"

namespace fq {

// Pin i is block i of the chain. Immutable.
struct Lease {
  std::vector<Pin> pins;
};

class LeaseTable {
 public:
  LeaseTable(Clock clock, Milliseconds life, size_t max_leases);

  // ResourceExhausted, with retry-after, when the session holds `max_leases`. Unauthenticated after
  // Close.
  absl::StatusOr<RandomId> Add(std::vector<Pin> pins);

  // The lease, its life begun anew. NotFound: unknown, expired or of another session.
  absl::StatusOr<std::shared_ptr<const Lease>> Use(const RandomId& id);

  // False when there is none of that id.
  bool Release(const RandomId& id);

  // Lets go of what has expired; returns how many. Called every now and then.
  size_t Expire();

  // Lets go of all and takes no more.
  void Close();
  size_t size() const;

  // Every lease that is held now.
  std::vector<std::shared_ptr<const Lease>> Snapshot() const;

 private:
  struct Held {
    std::shared_ptr<const Lease> lease;  // shared with running calls
    MonotonicTime expires;
  };
  using Map = absl::flat_hash_map<RandomId, Held>;

  Map TakeExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock clock_;
  const Milliseconds life_;
  const size_t max_leases_;
  mutable absl::Mutex mutex_;
  Map leases_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace fq
