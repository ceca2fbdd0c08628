// PagePath: finding and delivering.
#include <xxhash.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
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

BlockId IdOf(const Pin& pin) { return {pin.key().block, pin.tag().block_index, pin.tag().tokens}; }

size_t CodedBytes(const Pin& pin) { return pin.primary().size() + pin.refinement().size(); }

void AppendExtent(absl::Span<const std::byte> extent, InlineBlocks& result) {
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(extent.data(), extent.size()));
  result.checksums.append(reinterpret_cast<const char*>(digest.digest), sizeof(digest.digest));
  result.payload.append(reinterpret_cast<const char*>(extent.data()), extent.size());
}

const Pin& PinAt(const LeasedBlocks& blocks, size_t i) {
  return blocks.lease->pins[blocks.first_block + i];
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

Profile DeliveredProfile(const Pin& pin) {
  switch (static_cast<PageKind>(pin.tag().kind)) {
    case PageKind::kExact:
      return Profile::kExact;
    case PageKind::kUniversal:
      return Profile::kUniversal;
    default:
      return pin.refinement().empty() ? Profile::kCompact : Profile::kNearLossless;
  }
}

uint64_t EncodedBytes(const LeasedBlocks& blocks) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < blocks.block_count; ++i) bytes += CodedBytes(PinAt(blocks, i));
  return bytes;
}

LookupResult PagePath::Lookup(const SlabSpace& space, const LookupCall& call) {
  LookupResult result;
  for (size_t i = 0; i < call.keys.size(); ++i) {
    Pin pin = store_->Find({space.scope, call.keys[i]});
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
                                                         const PagesAt& pages,
                                                         absl::Span<std::byte> memory) {
  std::vector<BlockOutcome> outcomes(blocks.block_count, BlockOutcome::kMiss);
  std::atomic<uint64_t> coded_bytes{0};
  const MonotonicTime begin = SteadyNow();
  FQ_RETURN_IF_ERROR(workers_->ForEach(blocks.block_count, [&](size_t i) -> absl::Status {
    FQ_RETURN_IF_ERROR(context.Check());
    outcomes[i] = LoadBlock(space, blocks, i,
                            TargetPages(pages.layout, pages.places[i], space.shape(), memory));
    if (outcomes[i] == BlockOutcome::kOk) coded_bytes += CodedBytes(PinAt(blocks, i));
    return absl::OkStatus();
  }));
  decode_rate_.Add(coded_bytes, SteadyNow() - begin);
  return outcomes;
}

BlockOutcome PagePath::LoadBlock(const SlabSpace& space, const LeasedBlocks& blocks, size_t i,
                                 absl::Span<const TargetPage> pages) {
  const Pin& pin = PinAt(blocks, i);
  const Profile delivered = DeliveredProfile(pin);
  if (Rank(delivered) < Rank(blocks.floor)) {
    metrics_->Add(Metric::kBlocksMissed, {"below_floor"}, 1);
    return BlockOutcome::kBelowFloor;
  }
  if (!space.codec->Decode(IdOf(pin), pin.primary(), pin.refinement(), pages).ok()) {
    DropFailed(pin);
    return BlockOutcome::kMiss;
  }
  CountLoaded(space, pin, delivered);
  metrics_->Add(Metric::kRawBytes, {"load"}, static_cast<double>(DenseBlockBytes(space.shape())));
  metrics_->Add(Metric::kCodedBytes, {"load"}, static_cast<double>(CodedBytes(pin)));
  return BlockOutcome::kOk;
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
  auto memory =
      absl::MakeSpan(reinterpret_cast<std::byte*>(result.payload.data()), result.payload.size());
  FQ_ASSIGN_OR_RETURN(
      result.outcomes,
      Load(context, space, blocks, DensePlaces(space.shape(), blocks.block_count), memory));
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
    if (Rank(DeliveredProfile(pin)) < Rank(blocks.floor)) {
      metrics_->Add(Metric::kBlocksMissed, {"below_floor"}, 1);
      result.outcomes.back() = BlockOutcome::kBelowFloor;
    } else if (!VerifyBlock(space, pin).ok()) {
      result.outcomes.back() = BlockOutcome::kMiss;
    } else {
      result.sizes.back() = pin.primary().size();
      result.refinement_sizes.back() = pin.refinement().size();
      AppendExtent(pin.primary(), result);
      if (!pin.refinement().empty()) AppendExtent(pin.refinement(), result);
      CountLoaded(space, pin, DeliveredProfile(pin));
    }
  }
  return result;
}

absl::Status PagePath::Attend(const CallContext& context, const SlabSpace& space,
                              const AttendCall& call) {
  FQ_RETURN_IF_ERROR(context.Check());
  std::vector<EncodedBlock> blocks;
  for (uint32_t i = 0; i < call.block_count; ++i) {
    const Pin& pin = call.lease->pins[i];
    blocks.push_back({IdOf(pin), pin.primary(), pin.refinement()});
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
  absl::Status status = space.codec->Verify(IdOf(pin), pin.primary());
  if (status.ok() && !pin.refinement().empty()) {
    status = space.codec->Verify(IdOf(pin), pin.refinement());
  }
  if (!status.ok()) DropFailed(pin);
  return status;
}

void PagePath::DropFailed(const Pin& pin) {
  metrics_->Add(Metric::kBlocksMissed, {"check_failed"}, 1);
  store_->Erase(pin.key());
}

}  // namespace fq
