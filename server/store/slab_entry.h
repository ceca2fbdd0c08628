// One slab as the index knows it. Owned by the index; pins and the reservation share it, so that a
// slab that was erased while somebody reads it lives until the last reader is gone.
#pragma once

#include <cstdint>

#include "server/store/slab_pool.h"
#include "server/store/store.h"

namespace fq {

// The extents are written by the reserving thread before publish; afterwards they change only while
// nobody holds a pin. So whoever holds a pin or the reservation reads them without a lock. All
// fields below `refinement` are guarded by the mutex of the shard that owns the key.
struct SlabEntry {
  enum class Origin : uint8_t {
    kNew,
    kCopy,  // of a slab that can be found already: Erase and DropRefinement reach it unpublished
  };

  SlabEntry(const SlabKey& k, const SlabTag& t, Origin o = Origin::kNew)
      : key(k), tag(t), origin(o) {}

  uint64_t stored_bytes() const { return primary.stored_bytes() + refinement.stored_bytes(); }
  uint64_t requested_bytes() const { return primary.bytes + refinement.bytes; }

  const SlabKey key;
  const SlabTag tag;
  const Origin origin;
  Extent primary;
  Extent refinement;  // empty when there is none

  enum class State : uint8_t {
    kFilling,    // in the index, invisible
    kPublished,  // in the index, found
    kDetached,   // erased; kept by its pins alone, or by the reservation of a copy
  };
  State state = State::kFilling;
  bool drop_refinement = false;  // as soon as no pin is left
  uint32_t pins = 0;
  uint64_t last_use = 0;  // tick of the store's clock; orders slabs across shards
};

}  // namespace fq
