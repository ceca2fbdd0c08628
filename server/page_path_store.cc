// PagePath: storing.
#include <atomic>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "server/page_path.h"
#include "server/quality_watch.h"

namespace fq {
namespace {

PageKind KindOf(Profile profile) {
  if (profile == Profile::kExact) return PageKind::kExact;
  return profile == Profile::kUniversal ? PageKind::kUniversal : PageKind::kBase;
}

bool KeepsRefinement(const StoreCall& call, size_t i) {
  if (call.profile == Profile::kNearLossless) return true;
  return call.profile == Profile::kCompact && i + kTailBlocks >= call.keys.size();
}

// Blocks at the front of the batch that are in the store now.
size_t CompletePrefix(absl::Span<const BlockOutcome> outcomes) {
  size_t n = 0;
  while (n < outcomes.size() && outcomes[n] != BlockOutcome::kFull) ++n;
  return n;
}

const char* ResultName(BlockOutcome outcome) {
  if (outcome == BlockOutcome::kOk) return "ok";
  return outcome == BlockOutcome::kExists ? "exists" : "full";
}

}  // namespace

absl::StatusOr<std::vector<BlockOutcome>> PagePath::StoreBlocks(const CallContext& context,
                                                                const SlabSpace& space,
                                                                const StoreCall& call) {
  std::vector<BlockOutcome> outcomes(call.keys.size(), BlockOutcome::kFull);
  {
    std::vector<Pin> pins(call.keys.size());  // a batch must not evict its own first blocks
    FQ_RETURN_IF_ERROR(workers_->ForEach(call.keys.size(), [&](size_t i) -> absl::Status {
      FQ_RETURN_IF_ERROR(context.Check());
      FQ_ASSIGN_OR_RETURN(outcomes[i], StoreBlock(space, call, i, pins[i]));
      return absl::OkStatus();
    }));
  }
  if (call.profile == Profile::kCompact) DropRefinementsBehindTail(space, call, outcomes);
  TouchBackwards(space, call.keys);
  for (BlockOutcome outcome : outcomes) {
    metrics_->Add(Metric::kBlocksStored, {ProfileName(call.profile), ResultName(outcome)}, 1);
  }
  return outcomes;
}

absl::StatusOr<BlockOutcome> PagePath::StoreBlock(const SlabSpace& space, const StoreCall& call,
                                                  size_t i, Pin& pin) {
  const uint32_t index = call.first_block_index + static_cast<uint32_t>(i);
  const PageKind kind = KindOf(call.profile);
  const BlockId id{call.keys[i], index, kBlockTokens};
  const bool sink = index == 0;
  size_t refinement_bytes = 0;
  FQ_ASSIGN_OR_RETURN(size_t primary_bytes, space.codec->ExtentBytes(kind, sink));
  if (KeepsRefinement(call, i)) {
    FQ_ASSIGN_OR_RETURN(refinement_bytes, space.codec->ExtentBytes(PageKind::kRefinement, sink));
  }
  const SlabTag tag{index, static_cast<uint8_t>(kind), static_cast<uint8_t>(call.profile),
                    kBlockTokens};
  auto reservation = store_->Reserve({space.scope, id.key}, tag, primary_bytes, refinement_bytes);
  if (absl::IsAlreadyExists(reservation.status())) {
    pin = store_->Find({space.scope, id.key});  // none while another writer is at it
    return BlockOutcome::kExists;
  }
  if (absl::IsResourceExhausted(reservation.status())) return BlockOutcome::kFull;
  FQ_RETURN_IF_ERROR(reservation.status());
  const MonotonicTime begin = SteadyNow();
  auto pages = SourcePages(call.pages.layout, call.pages.places[i], space.shape(), call.memory);
  FQ_RETURN_IF_ERROR(
      space.codec->Encode(kind, id, pages, reservation->primary(), reservation->refinement()));
  encode_rate_.Add(primary_bytes + refinement_bytes, SteadyNow() - begin);
  quality_->MeasureEncoded(space, call.profile,
                           {id, reservation->primary(), reservation->refinement()}, pages);
  quality_->CountLength(space, call.profile, index, QualityWatch::Direction::kStore);
  pin = std::move(*reservation).Publish();
  metrics_->Add(Metric::kRawBytes, {"store"}, static_cast<double>(DenseBlockBytes(space.shape())));
  metrics_->Add(Metric::kCodedBytes, {"store"},
                static_cast<double>(primary_bytes + refinement_bytes));
  return BlockOutcome::kOk;
}

void PagePath::TouchBackwards(const SlabSpace& space, absl::Span<const BlockKey> keys) {
  for (size_t i = keys.size(); i-- > 0;) store_->Find({space.scope, keys[i]});
}

void PagePath::DropRefinementsBehindTail(const SlabSpace& space, const StoreCall& call,
                                         absl::Span<const BlockOutcome> outcomes) {
  std::vector<BlockKey> chain = call.preceding_keys;
  chain.insert(chain.end(), call.keys.begin(),
               call.keys.begin() + static_cast<std::ptrdiff_t>(CompletePrefix(outcomes)));
  for (size_t i = 0; i + kTailBlocks < chain.size(); ++i) {
    const SlabKey key{space.scope, chain[i]};
    {
      Pin pin = store_->Find(key);
      if (!pin || pin.tag().profile != static_cast<uint8_t>(Profile::kCompact)) continue;
    }
    if (store_->DropRefinement(key)) metrics_->Add(Metric::kTailRefinements, {}, 1);
  }
}

}  // namespace fq
