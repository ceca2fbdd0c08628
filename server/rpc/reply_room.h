// How much of inline replies gRPC holds because their callers have not taken them yet. A caller
// decides when it takes a reply, so nothing else bounds them. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace fq {

class ReplyRoom {
 public:
  explicit ReplyRoom(uint64_t bytes) : bytes_(bytes) {}

  // ResourceExhausted with retry-after: the room is used up, and `peer` would hold more than its
  // share of it. So all together never hold more than twice the room.
  absl::Status Take(const std::string& peer, uint64_t bytes);

  // What Take has given, once the reply is out or given up.
  void Give(const std::string& peer, uint64_t bytes);

  uint64_t held() const;

 private:
  const uint64_t bytes_;
  mutable absl::Mutex mutex_;
  uint64_t held_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<std::string, uint64_t> held_by_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fq
