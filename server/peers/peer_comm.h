// How pages go between the node's GPU and a worker's: one communicator a direction
// (proto/flashquant/v1/kv_cache.proto, "Peer links"). Implementations: nccl_comm.h, and sockets in
// tests/testing/socket_comm.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fq {

// Of operation 0, which connects the GPUs.
inline constexpr uint64_t kPeerHelloBytes = 256;

// ncclUniqueId: what one side makes and the other needs.
using PeerId = std::array<uint8_t, 128>;

// Device memory that one ncclSend or ncclRecv moves.
struct PeerRegion {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

// One operation.
using PeerRegions = std::vector<PeerRegion>;

enum class PeerDirection : uint8_t { kSend, kReceive };

// One communicator, this process's end of it. Nothing blocks but Abort and the destructor; one
// thread at a time.
class PeerComm {
 public:
  virtual ~PeerComm() = default;

  // Whether the other rank has come and all that was started is on its way: Start may be called.
  // Unavailable: it failed; Abort.
  virtual absl::StatusOr<bool> Ready() = 0;

  // Begins operations, at least one, behind those that were started. Their regions, at least one
  // each, stay in use until the operation is counted by Completed or Abort has returned. How many
  // are started together is no business of the other rank's.
  virtual absl::Status Start(absl::Span<const PeerRegions* const> operations) = 0;

  // How many of the operations started are done; they end in order. Unavailable as Ready.
  virtual absl::StatusOr<uint64_t> Completed() = 0;

  // Gives all up. Afterwards nothing touches any region; only the destructor may follow.
  virtual void Abort() = 0;
};

// Makes communicators on one GPU. Any thread.
class PeerTransport {
 public:
  virtual ~PeerTransport() = default;
  virtual const std::string& version() const = 0;
  virtual absl::StatusOr<PeerId> MakeId() = 0;
  // As rank 0 of two. Returns before the other rank has come.
  virtual absl::StatusOr<std::unique_ptr<PeerComm>> Join(const PeerId& id,
                                                         PeerDirection direction) = 0;
  // The same as rank 1, of an id that the other side has made.
  virtual absl::StatusOr<std::unique_ptr<PeerComm>> JoinOther(const PeerId& id,
                                                              PeerDirection direction) = 0;
};

}  // namespace fq
