// PagePath: blocks that another node encoded.
#include <cstring>
#include <utility>

#include "kernels/base/status_macros.h"
#include "server/page_path.h"

namespace fq {
namespace {

void Copy(absl::Span<const std::byte> from, absl::Span<std::byte> to) {
  if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
}

}  // namespace

// Whether a block was stored as compact the other node does not say: with its refinement it is kept
// as near-lossless, which only means that the tail rule leaves it alone.
BlockOutcome PagePath::PublishEncoded(const SlabSpace& space, const EncodedBlock& block, Pin& pin) {
  const absl::StatusOr<PageKind> kind =
      space.codec->VerifyBlock(block.id, block.primary, block.refinement);
  if (!kind.ok()) return BlockOutcome::kRefused;
  const Plan plan{block.id, *kind, block.primary.size(), block.refinement.size()};
  Reservation room;
  const absl::StatusOr<BlockOutcome> outcome =
      Reserve(Tier::kHost, space, ProfileOf(*kind, !block.refinement.empty()), plan, room, pin);
  if (!outcome.ok()) return BlockOutcome::kFull;
  if (*outcome != BlockOutcome::kOk) return *outcome;
  Copy(block.primary, room.primary());
  Copy(block.refinement, room.refinement());
  pin = std::move(room).Publish();
  return BlockOutcome::kOk;
}

BlockOutcome PagePath::ReserveIncoming(const CallContext& context, const SlabSpace& space,
                                       const BlockId& id, Profile delivered, IncomingBlock& block,
                                       Pin& pin) {
  const bool refined = delivered == Profile::kNearLossless;
  Plan plan{id, KindOf(delivered), 0, 0};
  const auto primary = space.codec->ExtentBytes(plan.kind, id.index == 0);
  const auto refinement = space.codec->ExtentBytes(PageKind::kRefinement, id.index == 0);
  if (!primary.ok() || (refined && !refinement.ok())) return BlockOutcome::kRefused;
  plan.primary_bytes = *primary;
  plan.refinement_bytes = refined ? *refinement : 0;
  block = {id, plan.kind, {}, false};
  const absl::StatusOr<BlockOutcome> outcome =
      Reserve(Tier::kDevice, space, delivered, plan, block.room, pin, WaitUntil(context));
  return outcome.ok() ? *outcome : BlockOutcome::kFull;
}

absl::StatusOr<std::vector<BlockOutcome>> PagePath::PublishIncoming(
    const CallContext& context, const SlabSpace& space, absl::Span<IncomingBlock> blocks,
    const DeviceSegment& scratch, absl::Span<Pin> pins) {
  std::vector<BlockOutcome> outcomes(blocks.size(), BlockOutcome::kRefused);
  FQ_ASSIGN_OR_RETURN(const std::vector<bool> broken,
                      CheckOnDevice(context, space, blocks, scratch));
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (broken[i]) continue;
    pins[i] = std::move(blocks[i].room).Publish();
    outcomes[i] = BlockOutcome::kOk;
  }
  return outcomes;
}

Pin PagePath::FindBlock(const SlabSpace& space, const BlockId& id) {
  Pin pin = tiers_->Find({space.scope, id.key});
  return pin && pin.tag().block_index == id.index ? std::move(pin) : Pin();
}

}  // namespace fq
