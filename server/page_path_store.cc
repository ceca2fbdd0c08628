// PagePath: storing.
#include <utility>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "server/page_path.h"
#include "server/quality_watch.h"

namespace fq {
namespace {

bool KeepsRefinement(const StoreCall& call, size_t i) {
  if (call.profile == Profile::kNearLossless) return true;
  return call.profile == Profile::kCompact && i + kTailBlocks >= call.keys.size();
}

// Blocks at the front of the batch that are in the store now.
size_t CompletePrefix(absl::Span<const BlockOutcome> outcomes) {
  size_t n = 0;
  while (n < outcomes.size() &&
         (outcomes[n] == BlockOutcome::kOk || outcomes[n] == BlockOutcome::kExists)) {
    ++n;
  }
  return n;
}

const char* ResultName(BlockOutcome outcome) {
  if (outcome == BlockOutcome::kOk) return "ok";
  if (outcome == BlockOutcome::kExists) return "exists";
  return outcome == BlockOutcome::kMiss ? "damaged" : "full";
}

}  // namespace

absl::StatusOr<std::vector<BlockOutcome>> PagePath::StoreBlocks(const CallContext& context,
                                                                const SlabSpace& space,
                                                                const StoreCall& call) {
  std::vector<BlockOutcome> outcomes(call.keys.size(), BlockOutcome::kFull);
  FQ_RETURN_IF_ERROR(call.source.device == nullptr
                         ? StoreFromHost(context, space, call, outcomes)
                         : StoreFromDevice(context, space, call, outcomes));
  if (call.profile == Profile::kCompact) DropRefinementsBehindTail(space, call, outcomes);
  TouchBackwards(space, call.keys);
  metrics_->Add(Metric::kTransportBlocks, {"store", TransportOf(call.source)},
                static_cast<double>(outcomes.size()));
  for (BlockOutcome outcome : outcomes) {
    metrics_->Add(Metric::kBlocksStored, {ProfileName(call.profile), ResultName(outcome)}, 1);
  }
  return outcomes;
}

absl::StatusOr<PagePath::Plan> PagePath::PlanOf(const SlabSpace& space, const StoreCall& call,
                                                size_t i) const {
  const uint32_t index = call.first_block_index + static_cast<uint32_t>(i);
  const bool sink = index == 0;
  Plan plan{{call.keys[i], index, kBlockTokens}, KindOf(call.profile), 0, 0};
  FQ_ASSIGN_OR_RETURN(plan.primary_bytes, space.codec->ExtentBytes(plan.kind, sink));
  if (KeepsRefinement(call, i)) {
    FQ_ASSIGN_OR_RETURN(plan.refinement_bytes,
                        space.codec->ExtentBytes(PageKind::kRefinement, sink));
  }
  return plan;
}

absl::StatusOr<BlockOutcome> PagePath::Reserve(Tier tier, const SlabSpace& space, Profile profile,
                                               const Plan& plan, Reservation& reservation, Pin& pin,
                                               MonotonicTime wait_until) {
  const SlabKey key{space.scope, plan.id.key};
  const SlabTag tag{plan.id.index, static_cast<uint8_t>(plan.kind), static_cast<uint8_t>(profile),
                    kBlockTokens};
  auto room =
      tiers_->Reserve(tier, key, tag, plan.primary_bytes, plan.refinement_bytes, wait_until);
  if (absl::IsAlreadyExists(room.status())) {
    pin = tiers_->Find(key);  // none while another writer is at it
    return BlockOutcome::kExists;
  }
  if (absl::IsResourceExhausted(room.status())) return BlockOutcome::kFull;
  FQ_ASSIGN_OR_RETURN(reservation, std::move(room));
  return BlockOutcome::kOk;
}

absl::Status PagePath::StoreFromHost(const CallContext& context, const SlabSpace& space,
                                     const StoreCall& call, std::vector<BlockOutcome>& outcomes) {
  std::vector<Pin> pins(call.keys.size());  // a batch must not evict its own first blocks
  return workers_->ForEach(call.keys.size(), [&](size_t i) -> absl::Status {
    FQ_RETURN_IF_ERROR(context.Check());
    FQ_ASSIGN_OR_RETURN(outcomes[i], StoreBlock(space, call, i, pins[i]));
    return absl::OkStatus();
  });
}

absl::StatusOr<BlockOutcome> PagePath::StoreBlock(const SlabSpace& space, const StoreCall& call,
                                                  size_t i, Pin& pin) {
  FQ_ASSIGN_OR_RETURN(const Plan plan, PlanOf(space, call, i));
  Reservation room;
  FQ_ASSIGN_OR_RETURN(const BlockOutcome outcome,
                      Reserve(Tier::kHost, space, call.profile, plan, room, pin));
  if (outcome != BlockOutcome::kOk) return outcome;
  const MonotonicTime begin = SteadyNow();
  const PagesAt& at = call.source.pages;
  auto pages = SourcePages(at.layout, at.places[i], space.shape(), call.source.memory);
  FQ_RETURN_IF_ERROR(
      space.codec->Encode(plan.kind, plan.id, pages, room.primary(), room.refinement()));
  encode_rate_.Add(plan.primary_bytes + plan.refinement_bytes, SteadyNow() - begin);
  const std::vector<int> sample = quality_->PagesToMeasure(space, call.profile, plan.id.key);
  std::vector<SourcePage> sampled;
  for (int page : sample) sampled.push_back(pages[page]);
  quality_->MeasureEncoded(space, call.profile, {plan.id, room.primary(), room.refinement()},
                           sample, sampled);
  pin = std::move(room).Publish();
  CountStored(space, call, plan);
  return BlockOutcome::kOk;
}

void PagePath::CountStored(const SlabSpace& space, const StoreCall& call, const Plan& plan) {
  quality_->CountLength(space, call.profile, plan.id.index, QualityWatch::Direction::kStore);
  metrics_->Add(Metric::kRawBytes, {"store"}, static_cast<double>(DenseBlockBytes(space.shape())));
  metrics_->Add(Metric::kCodedBytes, {"store"},
                static_cast<double>(plan.primary_bytes + plan.refinement_bytes));
}

void PagePath::TouchBackwards(const SlabSpace& space, absl::Span<const BlockKey> keys) {
  for (size_t i = keys.size(); i-- > 0;) tiers_->Find({space.scope, keys[i]});
}

void PagePath::DropRefinementsBehindTail(const SlabSpace& space, const StoreCall& call,
                                         absl::Span<const BlockOutcome> outcomes) {
  std::vector<BlockKey> chain = call.preceding_keys;
  chain.insert(chain.end(), call.keys.begin(),
               call.keys.begin() + static_cast<std::ptrdiff_t>(CompletePrefix(outcomes)));
  for (size_t i = 0; i + kTailBlocks < chain.size(); ++i) {
    const SlabKey key{space.scope, chain[i]};
    {
      Pin pin = tiers_->Find(key);
      if (!pin || pin.tag().profile != static_cast<uint8_t>(Profile::kCompact)) continue;
      if (pin.refinement().empty()) continue;
    }
    if (tiers_->DropRefinement(key)) metrics_->Add(Metric::kTailRefinements, {}, 1);
  }
}

}  // namespace fq
