#include "server/leases.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/retry_after.h"

namespace fq {

// Pins are let go outside the mutex throughout: freeing slabs takes the store's locks.

LeaseTable::LeaseTable(Clock clock, Milliseconds life, size_t max_leases)
    : clock_(std::move(clock)), life_(life), max_leases_(max_leases) {}

absl::StatusOr<RandomId> LeaseTable::Add(std::vector<Pin> pins) {
  FQ_ASSIGN_OR_RETURN(RandomId id, MakeRandomId());
  auto lease = std::make_shared<const Lease>(Lease{std::move(pins)});
  Map expired;
  absl::MutexLock lock(&mutex_);
  if (closed_) return absl::UnauthenticatedError("session_id: the session has ended");
  if (leases_.size() >= max_leases_) expired = TakeExpired();
  if (leases_.size() >= max_leases_) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("max-leases-per-session: the session holds ",
                                                  leases_.size(), ", at most ", max_leases_)),
        static_cast<uint32_t>(life_.count()));
  }
  leases_.emplace(id, Held{std::move(lease), clock_() + life_});
  return id;
}

absl::StatusOr<std::shared_ptr<const Lease>> LeaseTable::Use(const RandomId& id) {
  absl::MutexLock lock(&mutex_);
  auto it = leases_.find(id);
  MonotonicTime now = clock_();
  if (it == leases_.end() || it->second.expires <= now) {
    return absl::NotFoundError("lease_id: no such lease in this session, or it expired");
  }
  it->second.expires = now + life_;
  return it->second.lease;
}

bool LeaseTable::Release(const RandomId& id) {
  Held released;
  absl::MutexLock lock(&mutex_);
  auto it = leases_.find(id);
  if (it == leases_.end()) return false;
  released = std::move(it->second);
  leases_.erase(it);
  return released.expires > clock_();
}

size_t LeaseTable::Expire() {
  Map expired;
  absl::MutexLock lock(&mutex_);
  expired = TakeExpired();
  return expired.size();
}

void LeaseTable::Close() {
  Map all;
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  all.swap(leases_);
}

size_t LeaseTable::size() const {
  absl::MutexLock lock(&mutex_);
  return leases_.size();
}

std::vector<std::shared_ptr<const Lease>> LeaseTable::Snapshot() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Lease>> all;
  for (const auto& [id, held] : leases_) all.push_back(held.lease);
  return all;
}

LeaseTable::Map LeaseTable::TakeExpired() {
  Map expired;
  MonotonicTime now = clock_();
  for (auto it = leases_.begin(); it != leases_.end();) {
    auto current = it++;
    if (current->second.expires > now) continue;
    expired.emplace(current->first, std::move(current->second));
    leases_.erase(current);
  }
  return expired;
}

}  // namespace fq
