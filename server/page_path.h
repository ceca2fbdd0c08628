// Store, Lookup, Load and Attend: the one place where codec and store meet (server/README.md).
// Requests are checked already (rpc/validate_*.h). All methods thread-safe; they block until done,
// on a worker.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/slab.h"
#include "server/call_context.h"
#include "server/device/device_scheduler.h"
#include "server/device/device_segment.h"
#include "server/leases.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/namespaces.h"
#include "server/page_layout.h"
#include "server/profile_name.h"
#include "server/rate_meter.h"
#include "server/store/store.h"
#include "server/tiers.h"
#include "server/workers.h"

namespace fq {

// Values are on the wire (proto BlockStatus).
enum class BlockOutcome : uint8_t {
  kOk = 1,
  kExists = 2,
  kMiss = 3,
  kFull = 4,
  kBelowFloor = 5,
  kRefused = 6,
};

// Where a caller's pages are: in `memory`, or in tensors on the GPU.
struct CallerPages {
  PagesAt pages;  // one place per block
  absl::Span<std::byte> memory;
  const DeviceSegment* device = nullptr;  // not null: there, and `memory` is empty
  bool peer = false;                      // `device` is the window of a peer link
  bool in_message = false;                // `memory` is of the call's own message
  const void* session = nullptr;          // whose turn on the GPU it takes
};

// As metrics name it.
inline const char* TransportOf(const CallerPages& pages) {
  if (pages.peer) return "nccl";
  if (pages.device != nullptr) return "device";
  return pages.in_message ? "inline" : "segment";
}

struct StoreCall {
  Profile profile = Profile::kExact;
  uint32_t first_block_index = 0;
  std::vector<BlockKey> keys;
  std::vector<BlockKey> preceding_keys;  // up to two, just before keys[0]
  CallerPages source;                    // [keys]; only read
  std::vector<bool> damaged;             // [keys], or empty: set for pages that did not come whole
};

struct LookupCall {
  std::vector<BlockKey> keys;  // from the first block of the chain
  Profile floor = Profile::kCompact;
};
struct LookupResult {
  std::vector<Pin> pins;          // of the matched blocks
  std::vector<Profile> profiles;  // per pin: what a load would deliver
  uint32_t usable_blocks = 0;
  uint64_t load_bytes = 0;       // of usable_blocks
  double predicted_load_ms = 0;  // 0: nothing measured yet
};

// Extents of slabs in GPU memory, and what keeps them there.
struct DeviceExtents {
  std::vector<BlockOutcome> outcomes;
  std::vector<std::vector<DeviceRegion>> extents;  // per block; none unless the outcome is kOk
  std::shared_ptr<const void> keep;
};

// Blocks [first_block, first_block + block_count) of a lease.
struct LeasedBlocks {
  const Lease* lease = nullptr;
  uint32_t first_block = 0;
  uint32_t block_count = 0;
  Profile floor = Profile::kCompact;
};

struct InlineBlocks {
  std::vector<BlockOutcome> outcomes;
  std::vector<uint64_t> sizes;             // 0 unless the outcome is kOk
  std::vector<uint64_t> refinement_sizes;  // of encoded loads
  std::string checksums;                   // of encoded loads: XXH3-128 of each extent, big-endian
  std::string payload;
};

struct AttendCall {
  const Lease* lease = nullptr;
  uint32_t block_count = 0;
  AttendParams params;
};

// Blocks at the end of a chain that must not be compact (tail rule, DESIGN.md).
inline constexpr size_t kTailBlocks = 2;

// The tail rule: how many of the matched blocks to load.
uint32_t UsableBlocks(absl::Span<const Profile> matched);

// Of the primary extents that a profile has, and the profile of a block that has them, with or
// without a refinement.
PageKind KindOf(Profile profile);
Profile ProfileOf(PageKind kind, bool refined);

// What delivering this slab gives: a compact block that still has its refinement is near-lossless.
Profile DeliveredProfile(const Pin& pin);

// Of block `i`.
inline const Pin& PinAt(const LeasedBlocks& blocks, size_t i) {
  return blocks.lease->pins[blocks.first_block + i];
}
inline BlockId IdOf(const Pin& pin) {
  return {pin.key().block, pin.tag().block_index, pin.tag().tokens};
}
inline size_t CodedBytes(const Pin& pin) { return pin.primary().size() + pin.refinement().size(); }

// Bytes of all extents of these blocks, as LoadEncoded would send them.
uint64_t EncodedBytes(const LeasedBlocks& blocks);

// A block that another GPU will send, and the room for it on ours.
struct IncomingBlock {
  BlockId id;
  PageKind kind = PageKind::kExact;
  Reservation room;  // its extents are as long as the block's
  bool damaged = false;
};

class QualityWatch;
class SampledBlock;  // page_path_device.cc

class PagePath {
 public:
  // Keeps the pointers; `scheduler` is null without a GPU, `log` may be null.
  PagePath(Tiers* tiers, DeviceScheduler* scheduler, WorkerPool* workers, Metrics* metrics,
           QualityWatch* quality, const Log* log = nullptr)
      : tiers_(tiers),
        scheduler_(scheduler),
        workers_(workers),
        metrics_(metrics),
        quality_(quality),
        log_(log) {}

  // One outcome per key. FailedPrecondition: the profile needs a codec set. Errors of `context`:
  // blocks published until then stay. Unavailable: the GPU failed; nothing of the call is kept.
  absl::StatusOr<std::vector<BlockOutcome>> StoreBlocks(const CallContext& context,
                                                        const SlabSpace& space,
                                                        const StoreCall& call);

  LookupResult Lookup(const SlabSpace& space, const LookupCall& call);

  // Decodes into the caller's pages. A block that is not delivered leaves its place as it was; on
  // the GPU a block whose check failed may have been written in part. Unavailable: the GPU failed.
  absl::StatusOr<std::vector<BlockOutcome>> Load(const CallContext& context, const SlabSpace& space,
                                                 const LeasedBlocks& blocks,
                                                 const CallerPages& target);

  absl::StatusOr<InlineBlocks> LoadInline(const CallContext& context, const SlabSpace& space,
                                          const LeasedBlocks& blocks);
  absl::StatusOr<InlineBlocks> LoadEncoded(const CallContext& context, const SlabSpace& space,
                                           const LeasedBlocks& blocks);

  // Finds slabs in GPU memory, or brings them there from host memory, as they are: whoever gets
  // them checks them. `keep` does not hold the lease. Unavailable: the GPU failed.
  absl::StatusOr<DeviceExtents> LoadExtents(const CallContext& context, const SlabSpace& space,
                                            const LeasedBlocks& blocks, const void* session);

  // The word sum of each region of GPU memory (kernels/codec/word_sum.h). Unavailable: as above.
  absl::StatusOr<std::vector<uint64_t>> Sums(const CallContext& context, const void* session,
                                             std::vector<DeviceRegion> regions);

  // DataLoss: a block failed its check; it is dropped and nothing is put out.
  absl::Status Attend(const CallContext& context, const SlabSpace& space, const AttendCall& call);

  // Publishes a block that another node encoded, if it passes every check a load makes. kOk and
  // kExists (`pin` holds it if it is there), kFull, kRefused. The bytes are nobody else's
  // meanwhile.
  BlockOutcome PublishEncoded(const SlabSpace& space, const EncodedBlock& block, Pin& pin);
  // The same of blocks that come to the GPU: kOk has room of that profile's sizes in `block`, the
  // others as above, kRefused: this namespace has no such profile.
  BlockOutcome ReserveIncoming(const CallContext& context, const SlabSpace& space,
                               const BlockId& id, Profile delivered, IncomingBlock& block,
                               Pin& pin);
  // Publishes those that are not damaged and pass the checks of the GPU; kOk or kRefused each.
  // `scratch` has room for a block and is written to. Unavailable: the GPU failed.
  absl::StatusOr<std::vector<BlockOutcome>> PublishIncoming(const CallContext& context,
                                                            const SlabSpace& space,
                                                            absl::Span<IncomingBlock> blocks,
                                                            const DeviceSegment& scratch,
                                                            absl::Span<Pin> pins);
  // A block that is here, used now; empty: none.
  Pin FindBlock(const SlabSpace& space, const BlockId& id);
  // Makes the first block of a chain the most recently used, so that chains are evicted from their
  // end: a block is of no use without those before it.
  void TouchBackwards(const SlabSpace& space, absl::Span<const BlockKey> keys);

  // Checks a slab as a load would; drops it when it fails.
  absl::Status VerifyBlock(const SlabSpace& space, const Pin& pin);

  const RateMeter& encode_rate() const { return encode_rate_; }
  const RateMeter& decode_rate() const { return decode_rate_; }

 private:
  // What one block of a store becomes.
  struct Plan {
    BlockId id;
    PageKind kind = PageKind::kExact;
    size_t primary_bytes = 0, refinement_bytes = 0;
  };
  absl::StatusOr<Plan> PlanOf(const SlabSpace& space, const StoreCall& call, size_t i) const;
  // kOk with a reservation; kExists, with a pin when the block is there; kFull. `wait_until`: as of
  // Tiers::Reserve.
  absl::StatusOr<BlockOutcome> Reserve(Tier tier, const SlabSpace& space, Profile profile,
                                       const Plan& plan, Reservation& reservation, Pin& pin,
                                       MonotonicTime wait_until = {});
  void CountStored(const SlabSpace& space, const StoreCall& call, const Plan& plan);

  absl::Status StoreFromHost(const CallContext& context, const SlabSpace& space,
                             const StoreCall& call, std::vector<BlockOutcome>& outcomes);
  // Block `i` of `call`; `pin` holds it when it is there.
  absl::StatusOr<BlockOutcome> StoreBlock(const SlabSpace& space, const StoreCall& call, size_t i,
                                          Pin& pin);
  void DropRefinementsBehindTail(const SlabSpace& space, const StoreCall& call,
                                 absl::Span<const BlockOutcome> outcomes);
  // Counts a block that was delivered.
  void CountLoaded(const SlabSpace& space, const Pin& pin, Profile delivered);
  void CountBytesLoaded(const SlabSpace& space, const Pin& pin);
  absl::Status LoadToHost(const CallContext& context, const SlabSpace& space,
                          const LeasedBlocks& blocks, const CallerPages& target,
                          std::vector<BlockOutcome>& outcomes);
  BlockOutcome LoadBlock(const SlabSpace& space, const LeasedBlocks& blocks, size_t i,
                         absl::Span<const TargetPage> pages);
  bool IsBelowFloor(const LeasedBlocks& blocks, size_t i);  // counts it
  void DropFailed(const Pin& pin);

  // The extents of a slab in host memory, copied there when they are on the GPU.
  struct HostExtents {
    absl::Span<const std::byte> primary, refinement;
    std::vector<std::byte> copy;
  };
  absl::StatusOr<HostExtents> OnHost(const Pin& pin);
  absl::Status VerifyExtents(const SlabSpace& space, const Pin& pin, const HostExtents& host);

  // page_path_device.cc
  absl::Status StoreFromDevice(const CallContext& context, const SlabSpace& space,
                               const StoreCall& call, std::vector<BlockOutcome>& outcomes);
  absl::Status LoadToDevice(const CallContext& context, const SlabSpace& space,
                            const LeasedBlocks& blocks, const CallerPages& target,
                            std::vector<BlockOutcome>& outcomes);
  // Room for a copy of a slab of the host tier: one that others will find, or, while another call
  // makes that one or the slab is about to lose its refinement, of this call alone.
  struct DeviceRoom {
    Reservation room;
    bool publish = false;
  };
  absl::StatusOr<DeviceRoom> RoomOnDevice(const Pin& host_pin, MonotonicTime wait_until);
  // Where a leased slab is, or will be when `work` has run, on the GPU; counts one without room.
  struct OnDevice {
    std::byte* primary = nullptr;
    std::byte* refinement = nullptr;
    DeviceRoom copy;  // empty when the slab is there already
  };
  absl::StatusOr<OnDevice> BringToDevice(const Pin& pin, MonotonicTime wait_until,
                                         DeviceCall& work);
  // Decodes the blocks into `scratch`, one over the other: which of them are damaged or broken.
  absl::StatusOr<std::vector<bool>> CheckOnDevice(const CallContext& context,
                                                  const SlabSpace& space,
                                                  absl::Span<const IncomingBlock> blocks,
                                                  const DeviceSegment& scratch);
  void MeasureLater(std::vector<std::unique_ptr<SampledBlock>> samples);
  // How long a call waits in all for demotion to make room on the device; then slabs are evicted.
  static MonotonicTime WaitUntil(const CallContext& context);
  absl::Status CheckDevice() const;  // Unavailable: no GPU, or it has failed
  absl::Status RunOnDevice(DeviceCall& call);

  Tiers* const tiers_;
  DeviceScheduler* const scheduler_;  // may be null
  WorkerPool* const workers_;
  Metrics* const metrics_;
  QualityWatch* const quality_;
  const Log* const log_;  // may be null
  RateMeter encode_rate_, decode_rate_;
  std::atomic<uint64_t> last_staging_{0};  // keys of room that is never published
};

}  // namespace fq
