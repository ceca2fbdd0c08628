#include "server/peers/remote_node.h"

#include <grpc/impl/codegen/compression_types.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <cstring>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/digest.h"
#include "kernels/base/status_macros.h"
#include "server/peers/peer_comm.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

constexpr size_t kIdBytes = 16;
constexpr size_t kKeyBytes = 32;
constexpr size_t kPeerIdBytes = std::tuple_size_v<PeerId>;
constexpr size_t kDigestBytes = sizeof(Digest);
constexpr uint64_t kHeadBytesMax = 4 << 20;  // of a reply beside its payload
constexpr size_t kMessageBytesMax = 200;     // of another node's text that is passed on
constexpr int kReconnectMsFirst = 50, kReconnectMsMax = 1000;
constexpr int kConnectMs = 2000;  // given to one attempt; calls end at their own deadlines
constexpr int kUncompressedOnly = 1 << GRPC_COMPRESS_NONE;  // what comes takes what it says

grpc::ChannelArguments Arguments(uint64_t max_payload_bytes) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(max_payload_bytes + kHeadBytesMax));
  arguments.SetInt(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, kUncompressedOnly);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMsFirst);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMsMax);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // would read the environment
  return arguments;
}

// A caller may see these: they are about what it asked for. Others are between the two nodes.
absl::StatusCode CodeFor(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:
      return static_cast<absl::StatusCode>(code);
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return absl::StatusCode::kPermissionDenied;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(
      CodeFor(status.error_code()),
      absl::StrCat(
          "the other node: ",
          absl::CHexEscape(absl::string_view(status.error_message()).substr(0, kMessageBytesMax))));
}

absl::Status Expect(absl::string_view what, uint64_t found, uint64_t expected) {
  if (found == expected) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("the other node's reply has ", found, " ", what, ", expected ", expected));
}

bool DigestFits(absl::Span<const std::byte> extent, const char* digest) {
  return std::memcmp(DigestOf(extent).data(), digest, kDigestBytes) == 0;
}

absl::Status CheckOpened(const wire::SessionResponse& opened) {
  FQ_RETURN_IF_ERROR(Expect("bytes of session_id", opened.session_id().size(), kIdBytes));
  if (opened.max_blocks_per_call() > 0 && opened.max_inline_bytes() > 0) return absl::OkStatus();
  return absl::DataLossError("the other node takes no block a call, or no byte");
}

absl::Status CheckMatch(const wire::LookupResponse& reply, size_t asked) {
  const uint64_t matched = reply.matched_blocks();
  if (matched > asked) {
    return absl::DataLossError(
        absl::StrCat("the other node matched ", matched, " blocks of ", asked));
  }
  FQ_RETURN_IF_ERROR(
      Expect("stored_bytes", static_cast<uint64_t>(reply.stored_bytes_size()), matched));
  FQ_RETURN_IF_ERROR(Expect("profiles", static_cast<uint64_t>(reply.profiles_size()), matched));
  for (int profile : reply.profiles()) {
    if (profile < wire::PROFILE_EXACT || profile > wire::PROFILE_UNIVERSAL) {
      return absl::DataLossError(absl::StrCat("the other node holds a block as ", profile));
    }
  }
  return matched == 0 ? absl::OkStatus()
                      : Expect("bytes of lease_id", reply.lease_id().size(), kIdBytes);
}

absl::Status CheckCounts(const wire::LoadResponse& reply, size_t blocks) {
  FQ_RETURN_IF_ERROR(Expect("statuses", static_cast<uint64_t>(reply.statuses_size()), blocks));
  FQ_RETURN_IF_ERROR(Expect("sizes", static_cast<uint64_t>(reply.sizes_size()), blocks));
  return Expect("refinement_sizes", static_cast<uint64_t>(reply.refinement_sizes_size()), blocks);
}

absl::Status CheckLinkReply(const wire::LoadResponse& reply, size_t blocks) {
  FQ_RETURN_IF_ERROR(CheckCounts(reply, blocks));
  uint64_t extents = 0;
  for (int i = 0; i < reply.statuses_size(); ++i) {
    if (reply.statuses(i) != wire::BLOCK_STATUS_OK) continue;
    extents += reply.refinement_sizes(i) > 0 ? 2 : 1;
  }
  FQ_RETURN_IF_ERROR(Expect("peer_sums", static_cast<uint64_t>(reply.peer_sums_size()), extents));
  return Expect("operations", reply.peer_sequence() != 0 ? 1 : 0, extents != 0 ? 1 : 0);
}

// Extents of a payload, one behind the other, with the digest of each.
class ExtentReader {
 public:
  explicit ExtentReader(const wire::LoadResponse& reply)
      : payload_(reinterpret_cast<const std::byte*>(reply.payload().data()),
                 reply.payload().size()),
        digests_(reply.xxh3_128()) {}

  // False when there are not so many bytes, or no digest for them.
  bool Next(uint64_t bytes, absl::Span<const std::byte>& extent, bool& damaged) {
    if (bytes > payload_.size() || digests_.size() < kDigestBytes) return false;
    extent = payload_.first(bytes);
    damaged = damaged || !DigestFits(extent, digests_.data());
    payload_.remove_prefix(bytes);
    digests_.remove_prefix(kDigestBytes);
    return true;
  }
  bool AtEnd() const { return payload_.empty() && digests_.empty(); }

 private:
  absl::Span<const std::byte> payload_;
  absl::string_view digests_;
};

absl::Status Misfit() {
  return absl::DataLossError("the other node's sizes, payload and xxh3_128 do not fit together");
}

}  // namespace

RemoteNodes::RemoteNodes(const std::vector<std::string>& addresses, const RemoteTls& tls,
                         uint64_t max_payload_bytes) {
  for (const std::string& address : addresses) {
    const bool plain = tls.ca.empty() || absl::StartsWith(address, "unix:");
    channels_[address] =
        grpc::CreateCustomChannel(address,
                                  plain ? grpc::InsecureChannelCredentials()
                                        : grpc::SslCredentials({tls.ca, tls.key, tls.cert}),
                                  Arguments(max_payload_bytes));
  }
}

std::shared_ptr<grpc::Channel> RemoteNodes::Find(const std::string& address) const {
  const auto it = channels_.find(address);
  return it == channels_.end() ? nullptr : it->second;
}

RemoteSession::RemoteSession(const std::shared_ptr<grpc::Channel>& channel,
                             const RemoteLimits& limits)
    : limits_(limits), stub_(wire::KvCache::NewStub(channel)), context_(NewContext()) {}

absl::StatusOr<std::unique_ptr<RemoteSession>> RemoteSession::Open(
    const std::shared_ptr<grpc::Channel>& channel, const wire::SessionRequest& request,
    const RemoteLimits& limits) {
  std::unique_ptr<RemoteSession> session(new RemoteSession(channel, limits));
  FQ_RETURN_IF_ERROR(session->OpenStream(request));
  FQ_RETURN_IF_ERROR(CheckOpened(session->opened_));
  return session;
}

absl::Status RemoteSession::OpenStream(const wire::SessionRequest& request) {
  stream_ = stub_->Session(context_.get());
  if (stream_->Write(request) && stream_->Read(&opened_)) return absl::OkStatus();
  const grpc::Status end = stream_->Finish();
  stream_.reset();
  return end.ok() ? absl::UnavailableError("the other node ended the session") : FromGrpc(end);
}

RemoteSession::~RemoteSession() {
  if (stream_ == nullptr) return;
  context_->TryCancel();
  stream_->Finish();
}

std::unique_ptr<grpc::ClientContext> RemoteSession::NewContext() const {
  auto context = limits_.parent == nullptr
                     ? std::make_unique<grpc::ClientContext>()
                     : grpc::ClientContext::FromCallbackServerContext(*limits_.parent);
  context->set_deadline(limits_.deadline);
  return context;
}

absl::StatusOr<wire::LookupResponse> RemoteSession::Lookup(const std::string& keys,
                                                           wire::Profile floor) {
  wire::LookupRequest request;
  request.set_session_id(opened_.session_id());
  request.set_keys(keys);
  request.set_min_profile(floor);
  wire::LookupResponse reply;
  FQ_RETURN_IF_ERROR(FromGrpc(stub_->Lookup(NewContext().get(), request, &reply)));
  FQ_RETURN_IF_ERROR(CheckMatch(reply, keys.size() / kKeyBytes));
  return reply;
}

absl::StatusOr<RemoteBlocks> RemoteSession::Load(const std::string& lease, uint32_t first,
                                                 uint32_t count, wire::Profile floor) {
  wire::LoadRequest request;
  request.set_session_id(opened_.session_id());
  request.set_lease_id(lease);
  request.set_first_block(first);
  request.set_block_count(count);
  request.set_min_profile(floor);
  request.set_encoded(true);
  auto reply = std::make_unique<wire::LoadResponse>();
  FQ_RETURN_IF_ERROR(FromGrpc(stub_->Load(NewContext().get(), request, reply.get())));
  return TakeApart(std::move(reply), count);
}

absl::StatusOr<wire::OpenPeerLinkResponse> RemoteSession::OpenLink(const std::string& device_uuid,
                                                                   uint64_t window_bytes) {
  wire::OpenPeerLinkRequest request;
  request.set_session_id(opened_.session_id());
  request.set_device_uuid(device_uuid);
  request.set_window_bytes(window_bytes);
  wire::OpenPeerLinkResponse reply;
  FQ_RETURN_IF_ERROR(FromGrpc(stub_->OpenPeerLink(NewContext().get(), request, &reply)));
  FQ_RETURN_IF_ERROR(Expect("bytes of down_id", reply.down_id().size(), kPeerIdBytes));
  FQ_RETURN_IF_ERROR(Expect("bytes of up_id", reply.up_id().size(), kPeerIdBytes));
  return reply;
}

absl::StatusOr<wire::LoadResponse> RemoteSession::LoadOverLink(
    const std::string& lease, uint32_t first, wire::Profile floor, uint32_t segment_id,
    const std::vector<uint64_t>& offsets) {
  wire::LoadRequest request;
  request.set_session_id(opened_.session_id());
  request.set_lease_id(lease);
  request.set_first_block(first);
  request.set_block_count(static_cast<uint32_t>(offsets.size()));
  request.set_min_profile(floor);
  request.set_encoded(true);
  request.mutable_pages()->set_segment_id(segment_id);
  for (uint64_t offset : offsets) {
    request.mutable_pages()->add_places()->add_chunk_offsets(offset);
  }
  wire::LoadResponse reply;
  FQ_RETURN_IF_ERROR(FromGrpc(stub_->Load(NewContext().get(), request, &reply)));
  FQ_RETURN_IF_ERROR(CheckLinkReply(reply, offsets.size()));
  return reply;
}

absl::StatusOr<RemoteBlocks> TakeApart(std::unique_ptr<wire::LoadResponse> reply, uint32_t count) {
  FQ_RETURN_IF_ERROR(CheckCounts(*reply, count));
  RemoteBlocks result{std::move(reply), std::vector<RemoteBlocks::Block>(count)};
  ExtentReader extents(*result.reply);
  for (uint32_t i = 0; i < count; ++i) {
    RemoteBlocks::Block& block = result.blocks[i];
    const int at = static_cast<int>(i);
    const uint64_t primary = result.reply->sizes(at),
                   refinement = result.reply->refinement_sizes(at);
    block.status = result.reply->statuses(at);
    if ((block.status == wire::BLOCK_STATUS_OK) != (primary > 0)) return Misfit();
    if (primary > 0 && !extents.Next(primary, block.primary, block.damaged)) return Misfit();
    if (refinement > 0 && primary == 0) return Misfit();
    if (refinement > 0 && !extents.Next(refinement, block.refinement, block.damaged)) {
      return Misfit();
    }
  }
  return extents.AtEnd() ? absl::StatusOr<RemoteBlocks>(std::move(result)) : Misfit();
}

}  // namespace fq
