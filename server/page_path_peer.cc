// PagePath: what goes over a peer link as it is, and the sums of what comes and goes.
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "server/page_path.h"

namespace fq {

absl::StatusOr<std::vector<uint64_t>> PagePath::Sums(const CallContext& context,
                                                     const void* session,
                                                     std::vector<DeviceRegion> regions) {
  DeviceCall work;
  work.work = DeviceWork::kRead;
  work.still_wanted = [&context] { return context.Check(); };
  work.session = session;
  work.regions = std::move(regions);
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  return std::move(work.sums);
}

absl::StatusOr<DeviceExtents> PagePath::LoadExtents(const CallContext& context,
                                                    const SlabSpace& space,
                                                    const LeasedBlocks& blocks,
                                                    const void* session) {
  FQ_RETURN_IF_ERROR(context.Check());
  FQ_RETURN_IF_ERROR(CheckDevice());
  const MonotonicTime wait_until = WaitUntil(context);
  const auto copies = std::make_shared<std::vector<DeviceRoom>>();
  DeviceExtents result;
  result.extents.resize(blocks.block_count);
  DeviceCall work;
  work.work = DeviceWork::kRead;
  work.still_wanted = [&context] { return context.Check(); };
  work.session = session;
  for (size_t i = 0; i < blocks.block_count; ++i) {
    const Pin& pin = PinAt(blocks, i);
    result.outcomes.push_back(BlockOutcome::kBelowFloor);
    if (IsBelowFloor(blocks, i)) continue;
    absl::StatusOr<OnDevice> there = BringToDevice(pin, wait_until, work);
    result.outcomes.back() = there.ok() ? BlockOutcome::kOk : BlockOutcome::kMiss;
    if (!there.ok()) continue;
    result.extents[i].push_back({there->primary, pin.primary().size()});
    if (there->refinement != nullptr) {
      result.extents[i].push_back({there->refinement, pin.refinement().size()});
    }
    copies->push_back(std::move(there->copy));
  }
  if (!work.uploads.empty()) FQ_RETURN_IF_ERROR(RunOnDevice(work));
  for (size_t i = 0; i < blocks.block_count; ++i) {
    if (result.outcomes[i] == BlockOutcome::kOk) {
      CountLoaded(space, PinAt(blocks, i), DeliveredProfile(PinAt(blocks, i)));
    }
  }
  metrics_->Add(Metric::kTransportBlocks, {"load", "nccl"}, blocks.block_count);
  result.keep = copies;
  return result;
}

}  // namespace fq
