#include "client/cli/page_transfer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{64} << 20;  // a call of this size ends well in time
constexpr size_t kTailKeys = 2;                         // that a store may look back at

using client::BlockStatus;

}  // namespace

PageTransfer::PageTransfer(client::Session& session, absl::Duration deadline)
    : session_(session),
      deadline_(deadline),
      block_bytes_(client::DenseBlockBytes(session.spec().descriptor, session.spec().range)),
      layout_(client::DenseLayout(session.spec().descriptor, session.spec().range)) {}

absl::StatusOr<std::unique_ptr<PageTransfer>> PageTransfer::Create(client::Session& session,
                                                                   absl::Duration deadline) {
  std::unique_ptr<PageTransfer> transfer(new PageTransfer(session, deadline));
  const client::SessionInfo info = session.info();
  const uint64_t block_bytes = transfer->block_bytes_;
  const bool local = !info.segment_socket.empty();
  const uint64_t room_bytes = local ? std::max(kSegmentBytes, block_bytes) : info.max_inline_bytes;
  transfer->blocks_per_call_ =
      std::min<uint64_t>(info.max_blocks_per_call, room_bytes / block_bytes);
  if (transfer->blocks_per_call_ == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a block has ", block_bytes, " bytes, the node takes ", room_bytes, " inline"));
  }
  if (local) {
    FQ_ASSIGN_OR_RETURN(transfer->segment_,
                        client::Segment::Create(transfer->blocks_per_call_ * block_bytes));
  }
  return transfer;
}

absl::StatusOr<std::vector<BlockStatus>> PageTransfer::Store(
    client::Profile profile, absl::Span<const client::BlockKey> keys,
    absl::Span<const std::byte> pages) {
  std::vector<BlockStatus> statuses;
  for (size_t begin = 0; begin < keys.size(); begin += blocks_per_call_) {
    const size_t preceding = std::min(begin, kTailKeys);
    client::StoreCall call;
    call.profile = profile;
    call.first_block_index = static_cast<uint32_t>(begin);
    call.keys = keys.subspan(begin, blocks_per_call_);
    call.preceding_keys = keys.subspan(begin - preceding, preceding);
    const size_t bytes = call.keys.size() * block_bytes_;
    FQ_ASSIGN_OR_RETURN(const auto some,
                        StoreSome(std::move(call), pages.subspan(begin * block_bytes_, bytes)));
    statuses.insert(statuses.end(), some.begin(), some.end());
  }
  return statuses;
}

absl::StatusOr<std::vector<BlockStatus>> PageTransfer::StoreSome(
    client::StoreCall call, absl::Span<const std::byte> pages) {
  call.layout = layout_;
  call.places = client::DensePlaces(0, block_bytes_, call.keys.size());
  call.deadline = deadline_;
  call.segment = segment_;
  if (segment_ == nullptr) {
    call.payload = pages;
  } else {
    std::memcpy(segment_->memory().data(), pages.data(), pages.size());
  }
  return session_.Store(call);
}

absl::StatusOr<std::vector<BlockStatus>> PageTransfer::Load(const client::LeaseId& lease,
                                                            client::Profile floor,
                                                            absl::Span<std::byte> pages) {
  std::vector<BlockStatus> statuses;
  const size_t blocks = pages.size() / block_bytes_;
  for (size_t begin = 0; begin < blocks; begin += blocks_per_call_) {
    client::LoadCall call;
    call.lease = lease;
    call.first_block = static_cast<uint32_t>(begin);
    call.block_count = static_cast<uint32_t>(std::min(blocks_per_call_, blocks - begin));
    call.floor = floor;
    const size_t bytes = call.block_count * block_bytes_;
    FQ_ASSIGN_OR_RETURN(const auto some,
                        LoadSome(std::move(call), pages.subspan(begin * block_bytes_, bytes)));
    statuses.insert(statuses.end(), some.begin(), some.end());
  }
  return statuses;
}

absl::StatusOr<std::vector<BlockStatus>> PageTransfer::LoadSome(client::LoadCall call,
                                                                absl::Span<std::byte> pages) {
  call.deadline = deadline_;
  call.segment = segment_;
  if (segment_ == nullptr) {
    call.destination = pages;
  } else {
    call.layout = layout_;
    call.places = client::DensePlaces(0, block_bytes_, call.block_count);
  }
  client::Loaded loaded = session_.Load(call);
  FQ_RETURN_IF_ERROR(loaded.node);
  for (size_t i = 0; segment_ != nullptr && i < loaded.statuses.size(); ++i) {
    if (loaded.statuses[i] != BlockStatus::kOk) continue;
    std::memcpy(pages.data() + i * block_bytes_, segment_->memory().data() + i * block_bytes_,
                block_bytes_);
  }
  return std::move(loaded.statuses);
}

}  // namespace fq::cli
