// PagePath: finding and delivering.
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "kernels/base/digest.h"
#include "kernels/base/status_macros.h"
#include "server/page_path.h"
#include "server/quality_watch.h"

namespace fq {
namespace {

// How good a delivery is, for floors: universal has no calibrated loss and counts as compact.
int Rank(Profile profile) {
  if (profile == Profile::kExact) return 3;
  return profile == Profile::kNearLossless ? 2 : 1;
}

void AppendExtent(absl::Span<const std::byte> extent, InlineBlocks& result) {
  const Digest digest = DigestOf(extent);
  result.checksums.append(digest.data(), digest.size());
  result.payload.append(reinterpret_cast<const char*>(extent.data()), extent.size());
}

PagesAt DensePlaces(const SlabShape& shape, size_t blocks) {
  PagesAt pages{DenseLayout(shape), std::vector<BlockPlace>(blocks)};
  for (size_t i = 0; i < blocks; ++i) pages.places[i].chunk_offsets = {i * DenseBlockBytes(shape)};
  return pages;
}

// Closes the gaps of blocks that were not delivered.
void Compact(const std::vector<BlockOutcome>& outcomes, uint64_t block_bytes,
             InlineBlocks& result) {
  size_t kept = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const bool delivered = outcomes[i] == BlockOutcome::kOk;
    result.sizes.push_back(delivered ? block_bytes : 0);
    if (!delivered) continue;
    if (kept != i) {
      std::memmove(&result.payload[kept * block_bytes], &result.payload[i * block_bytes],
                   block_bytes);
    }
    ++kept;
  }
  result.payload.resize(kept * block_bytes);
}

}  // namespace

uint32_t UsableBlocks(absl::Span<const Profile> matched) {
  for (size_t i = matched.size() - std::min(matched.size(), kTailBlocks); i < matched.size(); ++i) {
    if (matched[i] != Profile::kCompact) continue;
    return static_cast<uint32_t>(matched.size() - std::min(matched.size(), kTailBlocks));
  }
  return static_cast<uint32_t>(matched.size());
}

PageKind KindOf(Profile profile) {
  if (profile == Profile::kExact) return PageKind::kExact;
  return profile == Profile::kUniversal ? PageKind::kUniversal : PageKind::kBase;
}

Profile ProfileOf(PageKind kind, bool refined) {
  switch (kind) {
    case PageKind::kExact:
      return Profile::kExact;
    case PageKind::kUniversal:
      return Profile::kUniversal;
    default:
      return refined ? Profile::kNearLossless : Profile::kCompact;
  }
}

Profile DeliveredProfile(const Pin& pin) {
  return ProfileOf(static_cast<PageKind>(pin.tag().kind), !pin.refinement().empty());
}

uint64_t EncodedBytes(const LeasedBlocks& blocks) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < blocks.block_count; ++i) bytes += CodedBytes(PinAt(blocks, i));
  return bytes;
}

LookupResult PagePath::Lookup(const SlabSpace& space, const LookupCall& call) {
  LookupResult result;
  for (size_t i = 0; i < call.keys.size(); ++i) {
    Pin pin = tiers_->Find({space.scope, call.keys[i]});
    if (!pin || pin.tag().block_index != i) break;
    const Profile delivered = DeliveredProfile(pin);
    if (Rank(delivered) < Rank(call.floor)) {
      metrics_->Add(Metric::kLookupsBelowFloor, {ProfileName(delivered)}, 1);
      break;
    }
    result.profiles.push_back(delivered);
    result.pins.push_back(std::move(pin));
  }
  TouchBackwards(space, absl::MakeConstSpan(call.keys).first(result.pins.size()));
  result.usable_blocks = UsableBlocks(result.profiles);
  for (size_t i = 0; i < result.usable_blocks; ++i) result.load_bytes += CodedBytes(result.pins[i]);
  const double rate = decode_rate_.bytes_per_second();
  if (rate > 0) result.predicted_load_ms = 1e3 * static_cast<double>(result.load_bytes) / rate;
  const double hits = static_cast<double>(result.pins.size());
  metrics_->Add(Metric::kLookupBlocks, {"hit"}, hits);
  metrics_->Add(Metric::kLookupBlocks, {"miss"}, static_cast<double>(call.keys.size()) - hits);
  return result;
}

absl::StatusOr<std::vector<BlockOutcome>> PagePath::Load(const CallContext& context,
                                                         const SlabSpace& space,
                                                         const LeasedBlocks& blocks,
                                                         const CallerPages& target) {
  std::vector<BlockOutcome> outcomes(blocks.block_count, BlockOutcome::kMiss);
  const MonotonicTime begin = SteadyNow();
  FQ_RETURN_IF_ERROR(target.device == nullptr
                         ? LoadToHost(context, space, blocks, target, outcomes)
                         : LoadToDevice(context, space, blocks, target, outcomes));
  metrics_->Add(Metric::kTransportBlocks, {"load", TransportOf(target)},
                static_cast<double>(outcomes.size()));
  uint64_t coded_bytes = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (outcomes[i] == BlockOutcome::kOk) coded_bytes += CodedBytes(PinAt(blocks, i));
  }
  decode_rate_.Add(coded_bytes, SteadyNow() - begin);
  return outcomes;
}

absl::Status PagePath::LoadToHost(const CallContext& context, const SlabSpace& space,
                                  const LeasedBlocks& blocks, const CallerPages& target,
                                  std::vector<BlockOutcome>& outcomes) {
  const PagesAt& at = target.pages;
  return workers_->ForEach(blocks.block_count, [&](size_t i) -> absl::Status {
    FQ_RETURN_IF_ERROR(context.Check());
    outcomes[i] = LoadBlock(space, blocks, i,
                            TargetPages(at.layout, at.places[i], space.shape(), target.memory));
    return absl::OkStatus();
  });
}

bool PagePath::IsBelowFloor(const LeasedBlocks& blocks, size_t i) {
  if (Rank(DeliveredProfile(PinAt(blocks, i))) >= Rank(blocks.floor)) return false;
  metrics_->Add(Metric::kBlocksMissed, {"below_floor"}, 1);
  return true;
}

BlockOutcome PagePath::LoadBlock(const SlabSpace& space, const LeasedBlocks& blocks, size_t i,
                                 absl::Span<const TargetPage> pages) {
  const Pin& pin = PinAt(blocks, i);
  if (IsBelowFloor(blocks, i)) return BlockOutcome::kBelowFloor;
  const absl::StatusOr<HostExtents> host = OnHost(pin);
  if (!host.ok()) return BlockOutcome::kMiss;
  if (!space.codec->Decode(IdOf(pin), host->primary, host->refinement, pages).ok()) {
    DropFailed(pin);
    return BlockOutcome::kMiss;
  }
  CountLoaded(space, pin, DeliveredProfile(pin));
  CountBytesLoaded(space, pin);
  return BlockOutcome::kOk;
}

void PagePath::CountBytesLoaded(const SlabSpace& space, const Pin& pin) {
  metrics_->Add(Metric::kRawBytes, {"load"}, static_cast<double>(DenseBlockBytes(space.shape())));
  metrics_->Add(Metric::kCodedBytes, {"load"}, static_cast<double>(CodedBytes(pin)));
}

void PagePath::CountLoaded(const SlabSpace& space, const Pin& pin, Profile delivered) {
  metrics_->Add(Metric::kBlocksLoaded, {ProfileName(delivered)}, 1);
  quality_->CountLength(space, delivered, pin.tag().block_index, QualityWatch::Direction::kLoad);
}

absl::StatusOr<InlineBlocks> PagePath::LoadInline(const CallContext& context,
                                                  const SlabSpace& space,
                                                  const LeasedBlocks& blocks) {
  InlineBlocks result;
  const uint64_t block_bytes = DenseBlockBytes(space.shape());
  result.payload.resize(blocks.block_count * block_bytes);
  CallerPages target;
  target.in_message = true;
  target.pages = DensePlaces(space.shape(), blocks.block_count);
  target.memory =
      absl::MakeSpan(reinterpret_cast<std::byte*>(result.payload.data()), result.payload.size());
  FQ_ASSIGN_OR_RETURN(result.outcomes, Load(context, space, blocks, target));
  Compact(result.outcomes, block_bytes, result);
  return result;
}

absl::StatusOr<InlineBlocks> PagePath::LoadEncoded(const CallContext& context,
                                                   const SlabSpace& space,
                                                   const LeasedBlocks& blocks) {
  InlineBlocks result;
  for (size_t i = 0; i < blocks.block_count; ++i) {
    FQ_RETURN_IF_ERROR(context.Check());
    const Pin& pin = PinAt(blocks, i);
    result.outcomes.push_back(BlockOutcome::kOk);
    result.sizes.push_back(0);
    result.refinement_sizes.push_back(0);
    if (IsBelowFloor(blocks, i)) {
      result.outcomes.back() = BlockOutcome::kBelowFloor;
      continue;
    }
    const absl::StatusOr<HostExtents> host = OnHost(pin);
    if (!host.ok() || !VerifyExtents(space, pin, *host).ok()) {
      result.outcomes.back() = BlockOutcome::kMiss;
      continue;
    }
    result.sizes.back() = host->primary.size();
    result.refinement_sizes.back() = host->refinement.size();
    AppendExtent(host->primary, result);
    if (!host->refinement.empty()) AppendExtent(host->refinement, result);
    CountLoaded(space, pin, DeliveredProfile(pin));
  }
  return result;
}

absl::Status PagePath::Attend(const CallContext& context, const SlabSpace& space,
                              const AttendCall& call) {
  FQ_RETURN_IF_ERROR(context.Check());
  std::vector<HostExtents> extents;  // what `blocks` points at
  std::vector<EncodedBlock> blocks;
  for (uint32_t i = 0; i < call.block_count; ++i) {
    const Pin& pin = call.lease->pins[i];
    FQ_ASSIGN_OR_RETURN(HostExtents host, OnHost(pin));
    blocks.push_back({IdOf(pin), host.primary, host.refinement});
    extents.push_back(std::move(host));
  }
  absl::Status status = fq::Attend(*space.codec, blocks, call.params);
  if (absl::IsDataLoss(status)) {
    for (uint32_t i = 0; i < call.block_count; ++i) {
      VerifyBlock(space, call.lease->pins[i]).IgnoreError();  // drops the ones that fail
    }
  }
  if (status.ok()) metrics_->Add(Metric::kAttendBlocks, {}, call.block_count);
  return status;
}

absl::Status PagePath::VerifyBlock(const SlabSpace& space, const Pin& pin) {
  FQ_ASSIGN_OR_RETURN(const HostExtents host, OnHost(pin));
  return VerifyExtents(space, pin, host);
}

absl::Status PagePath::VerifyExtents(const SlabSpace& space, const Pin& pin,
                                     const HostExtents& host) {
  absl::Status status = space.codec->Verify(IdOf(pin), host.primary);
  if (status.ok() && !host.refinement.empty()) {
    status = space.codec->Verify(IdOf(pin), host.refinement);
  }
  if (!status.ok()) DropFailed(pin);
  return status;
}

void PagePath::DropFailed(const Pin& pin) {
  metrics_->Add(Metric::kBlocksMissed, {"check_failed"}, 1);
  tiers_->Erase(pin.key());
}

}  // namespace fq
