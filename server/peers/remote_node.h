// Another node, as a client of it sees it: a session that reads blocks as they are, still encoded.
// What it says is a stranger's: every count and length is checked before it is used.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "flashquant/v1/kv_cache.grpc.pb.h"

namespace grpc {
class CallbackServerContext;
}

namespace fq {

// How to reach other nodes. PEM texts; without `ca` nothing is encrypted.
struct RemoteTls {
  std::string ca, cert, key;
};

// The nodes that may be asked, by the text that names them: unix:///path or host:port (with `ca`
// over TLS). Connects when first needed, and again. Immutable; thread-safe.
class RemoteNodes {
 public:
  RemoteNodes(const std::vector<std::string>& addresses, const RemoteTls& tls,
              uint64_t max_payload_bytes);

  // Null: none of that name.
  std::shared_ptr<grpc::Channel> Find(const std::string& address) const;

 private:
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_;
};

// Until when an answer is wanted, and by whom: with `parent` cancelled every step ends.
struct RemoteLimits {
  std::chrono::system_clock::time_point deadline;
  const grpc::CallbackServerContext* parent = nullptr;  // may be null
};

// Blocks of one Load, as they came. Spans point into `reply`.
struct RemoteBlocks {
  struct Block {
    flashquant::v1::BlockStatus status = flashquant::v1::BLOCK_STATUS_MISS;
    absl::Span<const std::byte> primary, refinement;  // with OK
    bool damaged = false;                             // XXH3-128 of an extent differs
  };
  std::unique_ptr<flashquant::v1::LoadResponse> reply;
  std::vector<Block> blocks;
};

// Errors of all calls: NotFound (no such namespace, or the lease has gone), PermissionDenied,
// FailedPrecondition, ResourceExhausted and DeadlineExceeded as the other node says; DataLoss: its
// reply makes no sense; Unavailable: everything else. One thread.
class RemoteSession {
 public:
  static absl::StatusOr<std::unique_ptr<RemoteSession>> Open(
      const std::shared_ptr<grpc::Channel>& channel, const flashquant::v1::SessionRequest& request,
      const RemoteLimits& limits);
  ~RemoteSession();  // the other node forgets its leases

  const flashquant::v1::SessionResponse& opened() const { return opened_; }

  // `keys`: 32 bytes each, from the first block of the chain. Per matched block the reply has
  // stored_bytes; with any there is a lease.
  absl::StatusOr<flashquant::v1::LookupResponse> Lookup(const std::string& keys,
                                                        flashquant::v1::Profile floor);
  absl::StatusOr<RemoteBlocks> Load(const std::string& lease, uint32_t first, uint32_t count,
                                    flashquant::v1::Profile floor);

  // As of kv_cache.proto, "Peer links"; ids have their 128 bytes.
  absl::StatusOr<flashquant::v1::OpenPeerLinkResponse> OpenLink(const std::string& device_uuid,
                                                                uint64_t window_bytes);
  // Encoded, over that link, one block for each offset in its window. Per block the reply has
  // status and sizes, per extent that is coming a sum.
  absl::StatusOr<flashquant::v1::LoadResponse> LoadOverLink(const std::string& lease,
                                                            uint32_t first,
                                                            flashquant::v1::Profile floor,
                                                            uint32_t segment_id,
                                                            const std::vector<uint64_t>& offsets);

 private:
  using Stream =
      grpc::ClientReaderWriter<flashquant::v1::SessionRequest, flashquant::v1::SessionResponse>;
  RemoteSession(const std::shared_ptr<grpc::Channel>& channel, const RemoteLimits& limits);
  absl::Status OpenStream(const flashquant::v1::SessionRequest& request);
  std::unique_ptr<grpc::ClientContext> NewContext() const;

  const RemoteLimits limits_;
  const std::unique_ptr<flashquant::v1::KvCache::Stub> stub_;
  const std::unique_ptr<grpc::ClientContext> context_;  // of the stream
  std::unique_ptr<Stream> stream_;
  flashquant::v1::SessionResponse opened_;
};

// A reply to a Load of `count` encoded blocks, taken apart. DataLoss says what does not fit.
absl::StatusOr<RemoteBlocks> TakeApart(std::unique_ptr<flashquant::v1::LoadResponse> reply,
                                       uint32_t count);

}  // namespace fq
