#include "server/rpc/fetch_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/descriptor.h"
#include "server/rpc/fetch_link.h"
#include "server/rpc/to_calls.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

std::string JoinKeys(absl::Span<const BlockKey> keys) {
  return std::string(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(BlockKey));
}

std::chrono::system_clock::time_point WallClockOf(MonotonicTime deadline) {
  const auto left =
      std::min<MonotonicTime::duration>(deadline - SteadyNow(), std::chrono::hours(1));
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
}

// The same namespace, range and tenant at another node.
absl::StatusOr<wire::SessionRequest> RequestFor(const SlabSpace& space,
                                                const NamespaceRegistry& namespaces) {
  FQ_ASSIGN_OR_RETURN(const auto views, namespaces.List(space.tenant, space.namespace_name));
  wire::SessionRequest request;
  request.set_namespace_name(space.namespace_name);
  FillDescriptor(views.front().descriptor, *request.mutable_namespace_descriptor());
  const SlabShape& shape = space.shape();
  wire::SlabRange& range = *request.mutable_range();
  range.set_layer_begin(shape.layer_begin);
  range.set_layer_end(shape.layer_end);
  range.set_head_begin(shape.head_begin);
  range.set_head_end(shape.head_end);
  request.set_client_name("flashquantd");
  request.set_tenant(space.tenant);
  return request;
}

// Keys hold both, so anything else could only miss; who answers for another tenant is not trusted.
absl::Status CheckSame(const SlabSpace& space, const wire::SessionResponse& opened) {
  if (opened.namespace_fingerprint() != ToBytes(space.fingerprint)) {
    return absl::FailedPreconditionError("the other node sees another namespace of that name");
  }
  if (opened.tenant() == space.tenant) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "the other node takes this node for another tenant: this node's certificate must be one of "
      "its --trusted-node");
}

}  // namespace

FetchRun::FetchRun(Node* node, const SlabSpace& space, std::vector<BlockKey> keys,
                   wire::Profile floor)
    : node_(node),
      space_(space),
      keys_(std::move(keys)),
      floor_(floor),
      outcomes_(keys_.size(), BlockOutcome::kMiss),
      pins_(keys_.size()) {}

absl::Status FetchRun::Run(const CallContext& call, const Source& source) {
  const size_t wanted = FindWhatIsHere();
  if (wanted == 0) return absl::OkStatus();
  absl::Status status = Ask(call, source, wanted);
  node_->page_path().TouchBackwards(space_, keys_);
  return status;
}

absl::Status FetchRun::Ask(const CallContext& call, const Source& source, size_t wanted) {
  auto remote = Open({WallClockOf(call.deadline), source.parent}, source);
  if (absl::IsNotFound(remote.status())) return absl::OkStatus();  // it has no such namespace
  FQ_ASSIGN_OR_RETURN(remote_, std::move(remote));
  const size_t asked = std::min<size_t>(wanted, remote_->opened().max_blocks_per_call());
  FQ_ASSIGN_OR_RETURN(const auto found,
                      remote_->Lookup(JoinKeys(absl::MakeConstSpan(keys_).first(asked)), floor_));
  FQ_RETURN_IF_ERROR(LoadMissing(call, found));
  if (asked == wanted || found.matched_blocks() < asked) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the other node takes ", asked, " blocks a call"));
}

size_t FetchRun::FindWhatIsHere() {
  size_t wanted = 0;
  for (size_t i = 0; i < keys_.size(); ++i) {
    pins_[i] =
        node_->page_path().FindBlock(space_, {keys_[i], static_cast<uint32_t>(i), kBlockTokens});
    if (pins_[i]) {
      outcomes_[i] = BlockOutcome::kExists;
    } else {
      wanted = i + 1;
    }
  }
  return wanted;
}

absl::StatusOr<std::unique_ptr<RemoteSession>> FetchRun::Open(const RemoteLimits& limits,
                                                              const Source& source) const {
  FQ_ASSIGN_OR_RETURN(const auto request, RequestFor(space_, node_->namespaces()));
  FQ_ASSIGN_OR_RETURN(auto session, RemoteSession::Open(source.channel, request, limits));
  FQ_RETURN_IF_ERROR(CheckSame(space_, session->opened()));
  return session;
}

absl::Status FetchRun::LoadMissing(const CallContext& call, const wire::LookupResponse& found) {
  // What fails on the way between the GPUs is fetched the other way.
  if (WorthALink(found) && LoadOverLink(call, found).ok()) return absl::OkStatus();
  return ForEachMissing(call, found, [&](uint32_t first) -> absl::StatusOr<uint32_t> {
    FQ_ASSIGN_OR_RETURN(const uint32_t count, PieceAt(first, found));
    FQ_RETURN_IF_ERROR(LoadPiece(found.lease_id(), first, count));
    return count;
  });
}

absl::Status FetchRun::ForEachMissing(
    const CallContext& call, const wire::LookupResponse& found,
    const std::function<absl::StatusOr<uint32_t>(uint32_t first)>& load) {
  uint32_t i = 0;
  while (i < found.matched_blocks()) {
    if (!Lacks(i)) {
      ++i;
      continue;
    }
    FQ_RETURN_IF_ERROR(call.Check());
    FQ_ASSIGN_OR_RETURN(const uint32_t done, load(i));
    i += done;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> FetchRun::PieceAt(uint32_t first,
                                           const wire::LookupResponse& found) const {
  const uint64_t room =
      std::min(node_->options().max_inline_bytes, remote_->opened().max_inline_bytes());
  uint64_t bytes = 0;
  uint32_t i = first;
  for (; i < found.matched_blocks() && Lacks(i); ++i) {
    const uint64_t more = found.stored_bytes(static_cast<int>(i));
    if (more > room - bytes) break;
    bytes += more;
  }
  if (i > first) return i - first;
  return absl::ResourceExhaustedError(
      absl::StrCat("block ", first, " has ", found.stored_bytes(static_cast<int>(first)),
                   " bytes, max-inline-bytes of the two nodes is ", room));
}

absl::Status FetchRun::LoadPiece(const std::string& lease, uint32_t first, uint32_t count) {
  FQ_ASSIGN_OR_RETURN(const RemoteBlocks loaded, remote_->Load(lease, first, count, floor_));
  for (uint32_t j = 0; j < count; ++j) {
    const size_t i = first + j;
    outcomes_[i] = Publish(i, loaded.blocks[j]);
    if (outcomes_[i] != BlockOutcome::kFull) continue;
    std::replace(outcomes_.begin() + static_cast<ptrdiff_t>(i), outcomes_.end(),
                 BlockOutcome::kMiss, BlockOutcome::kFull);
    return absl::ResourceExhaustedError("no room: everything else is leased");
  }
  return absl::OkStatus();
}

bool FetchRun::WorthALink(const wire::LookupResponse& found) const {
  if (!FetchLink::Possible(*node_, *remote_)) return false;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < found.matched_blocks(); ++i) {
    const uint64_t more = Lacks(i) ? found.stored_bytes(static_cast<int>(i)) : 0;
    bytes += std::min(more, node_->options().fetch_link_bytes);
  }
  return bytes >= node_->options().fetch_link_bytes;
}

absl::Status FetchRun::LoadOverLink(const CallContext& call, const wire::LookupResponse& found) {
  FQ_ASSIGN_OR_RETURN(const auto link, FetchLink::Open(node_, space_, remote_.get()));
  return ForEachMissing(call, found, [&](uint32_t first) -> absl::StatusOr<uint32_t> {
    FQ_ASSIGN_OR_RETURN(auto blocks, ReservePiece(call, first, found, link->window_bytes()));
    if (blocks.empty()) return 0;
    const FetchLink::Piece piece{found.lease_id(), first, floor_, absl::MakeSpan(blocks),
                                 absl::MakeSpan(pins_).subspan(first, blocks.size())};
    FQ_ASSIGN_OR_RETURN(const auto outcomes, link->Load(call, piece));
    for (size_t j = 0; j < outcomes.size(); ++j) {
      outcomes_[first + j] = outcomes[j];
      if (outcomes[j] == BlockOutcome::kOk) nccl_bytes_ += CodedBytes(pins_[first + j]);
    }
    return static_cast<uint32_t>(blocks.size());
  });
}

absl::StatusOr<std::vector<IncomingBlock>> FetchRun::ReservePiece(const CallContext& call,
                                                                  uint32_t first,
                                                                  const wire::LookupResponse& found,
                                                                  uint64_t window_bytes) {
  std::vector<IncomingBlock> blocks;
  uint64_t used = 0;
  for (uint32_t i = first; i < found.matched_blocks() && Lacks(i); ++i) {
    IncomingBlock block;
    const BlockOutcome outcome = node_->page_path().ReserveIncoming(
        call, space_, {keys_[i], i, kBlockTokens},
        static_cast<Profile>(found.profiles(static_cast<int>(i))), block, pins_[i]);
    if (outcome == BlockOutcome::kExists) outcomes_[i] = outcome;
    if (outcome == BlockOutcome::kExists) break;
    used = outcome == BlockOutcome::kOk ? FetchLink::EndOf(block, used) : UINT64_MAX;
    if (used > window_bytes && blocks.empty()) {
      return absl::ResourceExhaustedError("no room on the GPU, or for a block in the window");
    }
    if (used > window_bytes) break;
    blocks.push_back(std::move(block));
  }
  return blocks;
}

BlockOutcome FetchRun::Publish(size_t i, const RemoteBlocks::Block& block) {
  if (block.status != wire::BLOCK_STATUS_OK) return NotDelivered(block.status);
  if (block.damaged) return BlockOutcome::kRefused;
  const EncodedBlock encoded{
      {keys_[i], static_cast<uint32_t>(i), kBlockTokens}, block.primary, block.refinement};
  const BlockOutcome outcome = node_->page_path().PublishEncoded(space_, encoded, pins_[i]);
  if (outcome == BlockOutcome::kOk) grpc_bytes_ += block.primary.size() + block.refinement.size();
  return outcome;
}

}  // namespace fq
