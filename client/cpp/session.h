// A session with a node: store, look up, load, attend. Every call ends within its deadline + 10 ms,
// whatever the node does; a node that does not answer has nothing (DESIGN.md, P5). A session whose
// node restarted is opened again by the next call. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/blocks.h"
#include "client/cpp/keys.h"
#include "client/cpp/segment.h"
#include "client/cpp/segment_socket.h"

namespace fq::client {

class NodeLink;

// In all calls below: how long the call may take; zero: the client's default.
using CallDeadline = absl::Duration;

struct SessionSpec {
  std::string namespace_name;
  Descriptor descriptor;
  SlabRange range;
};

struct SessionInfo {
  SessionId session_id{};
  Fingerprint fingerprint{};
  std::string tenant;
  std::string segment_socket;  // empty: the node is remote, loads and stores go inline
  std::string call_socket;     // empty: calls go over gRPC
  uint64_t max_blocks_per_call = 0;
  uint64_t max_inline_bytes = 0;
  uint64_t lease_ms = 0;
  std::vector<Profile> profiles;
  uint32_t calibrated_tokens = 0;
};

struct StoreCall {
  Profile profile = Profile::kExact;
  uint32_t first_block_index = 0;
  absl::Span<const BlockKey> keys;            // [blocks], in chain order
  absl::Span<const BlockKey> preceding_keys;  // up to two, just before keys[0]
  PageLayout layout;
  std::vector<BlockPlace> places;       // [blocks], offsets into segment or payload
  std::shared_ptr<Segment> segment;     // null: inline
  absl::Span<const std::byte> payload;  // inline pages
  CallDeadline deadline;
};

struct LookupCall {
  absl::Span<const BlockKey> keys;  // from the first block of the chain
  Profile floor = Profile::kCompact;
  enum class Lease { kTake, kNone } lease = Lease::kTake;
  CallDeadline deadline;
};

using LeaseId = std::array<uint8_t, 16>;

struct Match {
  absl::Status node;  // OK: the node answered; else why this is a miss
  uint32_t matched_blocks = 0;
  uint32_t usable_blocks = 0;          // what to load (tail rule)
  LeaseId lease{};                     // all zero when there is none
  std::vector<Profile> profiles;       // [matched_blocks]
  std::vector<uint64_t> stored_bytes;  // [matched_blocks]
  uint64_t load_bytes = 0;
  double predicted_load_ms = 0;
};

struct LoadCall {
  LeaseId lease{};
  uint32_t first_block = 0;
  uint32_t block_count = 0;
  Profile floor = Profile::kCompact;

  // Into a segment,
  std::shared_ptr<Segment> segment;
  PageLayout layout;
  std::vector<BlockPlace> places;  // [block_count]

  // or, without one, inline: dense blocks, block i at i * destination.size() / block_count. The
  // place of a block that is not OK stays as it was.
  absl::Span<std::byte> destination;
  CallDeadline deadline;
};

struct Loaded {
  absl::Status node;                  // OK: the node answered; else why all blocks are misses
  std::vector<BlockStatus> statuses;  // [block_count]; only the pages of kOk blocks are there
};

// Blocks of another node; the node asks it and checks what comes.
struct FetchCall {
  std::string node;                 // one of the node's --fetch-from, as written there
  absl::Span<const BlockKey> keys;  // from the first block of the chain
  Profile floor = Profile::kCompact;
  CallDeadline deadline;
};

struct Fetched {
  std::vector<BlockStatus> statuses;  // [keys]; here are those of kOk and kExists
  absl::Status stopped;               // OK: all were asked for; else why not, about that node
};

struct AttendCall {
  LeaseId lease{};
  uint32_t layer = 0;
  uint32_t block_count = 0;
  uint32_t q_heads_per_kv_head = 1;
  float scale = 1;
  absl::Span<const float> q;  // [heads * q_heads_per_kv_head][head_size]
  CallDeadline deadline;
};

struct Attended {
  std::vector<float> out;  // as q
  std::vector<float> lse;  // [heads * q_heads_per_kv_head]
};

class Session {
 public:
  class Keeper;  // of this library only
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const SessionSpec& spec() const;
  SessionInfo info() const;

  // Keys of this session's namespace and tenant.
  KeyChain Chain(absl::string_view salt) const;

  // One status per block. A block is stored when its status is kOk or kExists.
  absl::StatusOr<std::vector<BlockStatus>> Store(const StoreCall& call);

  // Never fails: no answer is a miss.
  Match Lookup(const LookupCall& call);

  // Never fails: without an answer all blocks are misses. `segment` is replaced then, see there.
  Loaded Load(const LoadCall& call);

  // Has the node fetch what it lacks. PermissionDenied: it may not ask that node. What is wrong
  // with that other node is in the result.
  absl::StatusOr<Fetched> Fetch(const FetchCall& call);

  // NotFound: the lease is gone. DataLoss: a block failed its check.
  absl::StatusOr<Attended> Attend(const AttendCall& call);

  // Gives leases back; returns how many of them the node knew.
  absl::StatusOr<uint32_t> Release(absl::Span<const LeaseId> leases, CallDeadline deadline);

  // Tells the node to unmap a segment that this session will not use any more.
  absl::Status Forget(const Segment& segment, CallDeadline deadline);

 private:
  friend class Client;
  explicit Session(std::unique_ptr<Keeper> keeper);
  const std::unique_ptr<Keeper> keeper_;
};

}  // namespace fq::client
