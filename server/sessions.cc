#include "server/sessions.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {

SessionRegistry::SessionRegistry(SessionLimits limits, Clock clock)
    : limits_(limits), clock_(std::move(clock)) {}

absl::StatusOr<std::shared_ptr<Session>> SessionRegistry::Open(
    std::shared_ptr<const SlabSpace> space, std::string owner) {
  FQ_ASSIGN_OR_RETURN(RandomId id, MakeRandomId());
  auto session = std::make_shared<Session>(id, std::move(space), std::move(owner), clock_, limits_);
  absl::MutexLock lock(&mutex_);
  if (sessions_.size() >= limits_.max_sessions) {
    return absl::ResourceExhaustedError(absl::StrCat("max-sessions: ", sessions_.size(),
                                                     " are open, at most ", limits_.max_sessions));
  }
  sessions_.emplace(id, session);
  return session;
}

absl::StatusOr<std::shared_ptr<Session>> SessionRegistry::Find(const RandomId& id) const {
  absl::MutexLock lock(&mutex_);
  auto it = sessions_.find(id);
  if (it == sessions_.end()) return absl::UnauthenticatedError("session_id: no such session");
  return it->second;
}

void SessionRegistry::Close(const RandomId& id) {
  std::shared_ptr<Session> session;
  {
    absl::MutexLock lock(&mutex_);
    auto it = sessions_.find(id);
    if (it == sessions_.end()) return;
    session = std::move(it->second);
    sessions_.erase(it);
  }
  session->leases.Close();
  session->segments.Close();
}

size_t SessionRegistry::ExpireLeases() {
  size_t expired = 0;
  for (const auto& session : All()) expired += session->leases.Expire();
  return expired;
}

std::vector<std::shared_ptr<Session>> SessionRegistry::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Session>> all;
  for (const auto& [id, session] : sessions_) all.push_back(session);
  return all;
}

size_t SessionRegistry::size() const {
  absl::MutexLock lock(&mutex_);
  return sessions_.size();
}

}  // namespace fq
