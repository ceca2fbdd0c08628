// A PeerTransport for tests without a second GPU: the bytes of an operation go through a Unix
// socket whose path is the id. On the wire, little-endian: u32 regions, then for each u64 bytes and
// the bytes; the receiver answers with one byte 1 when it has all, so that a send ends, as NCCL's
// does, only when the other side has received.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "server/peers/peer_comm.h"

namespace fq {

// Sockets lie in `folder`. Device memory is that of host_device.h.
class SocketTransport final : public PeerTransport {
 public:
  explicit SocketTransport(std::string folder);

  const std::string& version() const override { return version_; }
  absl::StatusOr<PeerId> MakeId() override;
  absl::StatusOr<std::unique_ptr<PeerComm>> Join(const PeerId& id,
                                                 PeerDirection direction) override;
  absl::StatusOr<std::unique_ptr<PeerComm>> JoinOther(const PeerId& id,
                                                      PeerDirection direction) override;

 private:
  const std::string folder_, version_ = "2.29.7";
  std::atomic<int> ids_{0};
};

// The worker's end: connects to the id's socket, or fails after a second.
absl::StatusOr<std::unique_ptr<PeerComm>> ConnectSocketComm(const PeerId& id,
                                                            PeerDirection direction);

}  // namespace fq
