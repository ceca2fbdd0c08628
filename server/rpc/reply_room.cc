#include "server/rpc/reply_room.h"

#include "absl/strings/str_cat.h"
#include "server/retry_after.h"

namespace fq {
namespace {

constexpr uint32_t kRetryAfterMs = 20;  // a reply takes about that long

}  // namespace

absl::Status ReplyRoom::Take(const std::string& peer, uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  auto held = held_by_.try_emplace(peer, 0).first;
  if (held_ + bytes > bytes_ && held->second + bytes > bytes_ / held_by_.size()) {
    absl::Status refused = absl::ResourceExhaustedError(absl::StrCat(
        "max-message-bytes: replies of ", held_, " bytes are not taken yet, ", held->second,
        " of them by this connection, and ", bytes, " more would come: at most ", bytes_));
    if (held->second == 0) held_by_.erase(held);
    return WithRetryAfter(std::move(refused), kRetryAfterMs);
  }
  held_ += bytes;
  held->second += bytes;
  return absl::OkStatus();
}

void ReplyRoom::Give(const std::string& peer, uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  auto held = held_by_.find(peer);
  if (held == held_by_.end()) return;
  held_ -= bytes;
  held->second -= bytes;
  if (held->second == 0) held_by_.erase(held);
}

uint64_t ReplyRoom::held() const {
  absl::MutexLock lock(&mutex_);
  return held_;
}

}  // namespace fq
