// Store, Lookup, Load and Attend: the one place where codec and store meet (server/README.md).
// Requests are checked already (rpc/validate_*.h). All methods thread-safe; they block until done,
// on a worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/slab.h"
#include "server/call_context.h"
#include "server/leases.h"
#include "server/metrics.h"
#include "server/namespaces.h"
#include "server/page_layout.h"
#include "server/profile_name.h"
#include "server/rate_meter.h"
#include "server/store/store.h"
#include "server/workers.h"

namespace fq {

// Values are on the wire (proto BlockStatus).
enum class BlockOutcome : uint8_t { kOk = 1, kExists = 2, kMiss = 3, kFull = 4, kBelowFloor = 5 };

struct StoreCall {
  Profile profile = Profile::kExact;
  uint32_t first_block_index = 0;
  std::vector<BlockKey> keys;
  std::vector<BlockKey> preceding_keys;  // up to two, just before keys[0]
  PagesAt pages;                         // [keys]
  absl::Span<const std::byte> memory;
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

// What delivering this slab gives: a compact block that still has its refinement is near-lossless.
Profile DeliveredProfile(const Pin& pin);

// Bytes of all extents of these blocks, as LoadEncoded would send them.
uint64_t EncodedBytes(const LeasedBlocks& blocks);

class QualityWatch;

class PagePath {
 public:
  // Keeps the pointers.
  PagePath(Store* store, WorkerPool* workers, Metrics* metrics, QualityWatch* quality)
      : store_(store), workers_(workers), metrics_(metrics), quality_(quality) {}

  // One outcome per key. FailedPrecondition: the profile needs a codec set. Errors of `context`:
  // blocks published until then stay.
  absl::StatusOr<std::vector<BlockOutcome>> StoreBlocks(const CallContext& context,
                                                        const SlabSpace& space,
                                                        const StoreCall& call);

  LookupResult Lookup(const SlabSpace& space, const LookupCall& call);

  // Decodes into `memory`; a block that is not delivered leaves its place as it was.
  absl::StatusOr<std::vector<BlockOutcome>> Load(const CallContext& context, const SlabSpace& space,
                                                 const LeasedBlocks& blocks, const PagesAt& pages,
                                                 absl::Span<std::byte> memory);

  absl::StatusOr<InlineBlocks> LoadInline(const CallContext& context, const SlabSpace& space,
                                          const LeasedBlocks& blocks);
  absl::StatusOr<InlineBlocks> LoadEncoded(const CallContext& context, const SlabSpace& space,
                                           const LeasedBlocks& blocks);

  // DataLoss: a block failed its check; it is dropped and nothing is put out.
  absl::Status Attend(const CallContext& context, const SlabSpace& space, const AttendCall& call);

  // Checks a slab as a load would; drops it when it fails.
  absl::Status VerifyBlock(const SlabSpace& space, const Pin& pin);

  const RateMeter& encode_rate() const { return encode_rate_; }
  const RateMeter& decode_rate() const { return decode_rate_; }

 private:
  // Block `i` of `call`; `pin` holds it when it is there.
  absl::StatusOr<BlockOutcome> StoreBlock(const SlabSpace& space, const StoreCall& call, size_t i,
                                          Pin& pin);
  // Makes the first block of a chain the most recently used, so that chains are evicted from their
  // end: a block is of no use without those before it.
  void TouchBackwards(const SlabSpace& space, absl::Span<const BlockKey> keys);
  void DropRefinementsBehindTail(const SlabSpace& space, const StoreCall& call,
                                 absl::Span<const BlockOutcome> outcomes);
  // Counts a block that was delivered.
  void CountLoaded(const SlabSpace& space, const Pin& pin, Profile delivered);
  BlockOutcome LoadBlock(const SlabSpace& space, const LeasedBlocks& blocks, size_t i,
                         absl::Span<const TargetPage> pages);
  void DropFailed(const Pin& pin);

  Store* const store_;
  WorkerPool* const workers_;
  Metrics* const metrics_;
  QualityWatch* const quality_;
  RateMeter encode_rate_, decode_rate_;
};

}  // namespace fq
