// One Fetch on its way: what is here already, what the other node has, piece by piece. One thread.
#pragma once

#include <grpcpp/server_context.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/peers/remote_node.h"
#include "server/rpc/wire.h"

namespace fq {

class FetchRun {
 public:
  struct Source {
    std::shared_ptr<grpc::Channel> channel;
    const grpc::CallbackServerContext* parent = nullptr;  // as of RemoteLimits
  };
  FetchRun(Node* node, const SlabSpace& space, std::vector<BlockKey> keys, wire::Profile floor);

  // Asks for what is not here. An error says why the rest was not asked for; what was published
  // until then stays.
  absl::Status Run(const CallContext& call, const Source& source);

  const std::vector<BlockOutcome>& outcomes() const { return outcomes_; }  // [keys]
  // Of extents that were published, by how they came.
  uint64_t grpc_bytes() const { return grpc_bytes_; }
  uint64_t nccl_bytes() const { return nccl_bytes_; }

 private:
  size_t FindWhatIsHere();  // returns how many blocks to ask for: up to the last that is missing
  absl::Status Ask(const CallContext& call, const Source& source, size_t wanted);
  absl::StatusOr<std::unique_ptr<RemoteSession>> Open(const RemoteLimits& limits,
                                                      const Source& source) const;
  absl::Status LoadMissing(const CallContext& call, const wire::LookupResponse& found);
  // Calls load(i) for the first block that is missing still, which returns how many it has been at;
  // and again for those behind them.
  absl::Status ForEachMissing(const CallContext& call, const wire::LookupResponse& found,
                              const std::function<absl::StatusOr<uint32_t>(uint32_t first)>& load);
  bool Lacks(size_t i) const { return outcomes_[i] == BlockOutcome::kMiss; }
  bool WorthALink(const wire::LookupResponse& found) const;
  absl::Status LoadOverLink(const CallContext& call, const wire::LookupResponse& found);
  // Room on the GPU for blocks from `first` on, as many as one Load may bring; none when the first
  // one is here by now.
  absl::StatusOr<std::vector<IncomingBlock>> ReservePiece(const CallContext& call, uint32_t first,
                                                          const wire::LookupResponse& found,
                                                          uint64_t window_bytes);
  // Blocks from `first` on that one reply may carry; at least one.
  absl::StatusOr<uint32_t> PieceAt(uint32_t first, const wire::LookupResponse& found) const;
  absl::Status LoadPiece(const std::string& lease, uint32_t first, uint32_t count);
  BlockOutcome Publish(size_t i, const RemoteBlocks::Block& block);

  Node* const node_;
  const SlabSpace& space_;
  const std::vector<BlockKey> keys_;
  const wire::Profile floor_;
  std::unique_ptr<RemoteSession> remote_;
  std::vector<BlockOutcome> outcomes_;
  std::vector<Pin> pins_;  // a fetch must not evict its own first blocks
  uint64_t grpc_bytes_ = 0, nccl_bytes_ = 0;
};

}  // namespace fq
