// The store of a tier: opaque bytes under a key, in host or device memory, which it never touches.
// Reserve, fill, publish; a reader holds a Pin and the bytes neither vanish nor move until it lets
// go. Knows neither codec nor wire.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/memory/memory_space.h"

namespace fq {

// Key of a slab: the block key within a scope. A scope is one (tenant, namespace, slab range),
// numbered by the caller.
struct SlabKey {
  uint64_t scope = 0;
  std::array<uint8_t, 32> block{};
  bool operator==(const SlabKey& o) const { return scope == o.scope && block == o.block; }
  template <typename H>
  friend H AbslHashValue(H h, const SlabKey& k) {
    return H::combine(std::move(h), k.scope, k.block);
  }
};

// What the caller wants to find again beside the bytes. Opaque to the store.
struct SlabTag {
  uint32_t block_index = 0;
  uint8_t kind = 0;
  uint8_t profile = 0;
  uint16_t tokens = 0;
};

struct StoreOptions {
  uint64_t capacity_bytes = uint64_t{1}
                            << 30;  // of the slab pool; allocated on demand, never exceeded
  uint32_t shards = 16;             // power of two
  std::shared_ptr<MemorySpace> space = nullptr;  // of nobody else; null: host memory
};

// What to do when there is no room: make some by dropping and evicting, or refuse.
enum class Pressure : uint8_t { kEvict, kRefuse };

struct StoreStats {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;       // allocated to slabs, rounding of the pool included
  uint64_t requested_bytes = 0;  // the same without rounding
  uint64_t slabs = 0;
  uint64_t pinned_slabs = 0;                      // erased ones that a pin still holds included
  uint64_t reserved_slabs = 0;                    // reserved, not yet published
  uint64_t evicted_slabs = 0, evicted_bytes = 0;  // counters
  uint64_t dropped_refinements = 0, dropped_refinement_bytes = 0;  // counters
  uint64_t rejected_full = 0;                                      // counters
};

class Pin;
class Store;
struct SlabEntry;  // store-internal

// Room for one slab, invisible until published. Movable; destroyed unpublished, it frees itself.
// One thread at a time. The room holds whatever was there before: fill all of it.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&&) noexcept;
  Reservation& operator=(Reservation&&) noexcept;
  ~Reservation();
  absl::Span<std::byte> primary() const;
  absl::Span<std::byte> refinement() const;  // empty when none was asked for
  // The slab is visible from here on, and cannot vanish while the pin is held. Empty when this is.
  Pin Publish() &&;

 private:
  friend class Store;
  std::shared_ptr<SlabEntry> entry_;
  Store* store_ = nullptr;
};

// A published slab that can neither vanish nor move while this is held. Movable; any thread may
// destroy it. A count, not a lease in time: held forever, it pins forever.
class Pin {
 public:
  Pin() = default;
  Pin(Pin&&) noexcept;
  Pin& operator=(Pin&&) noexcept;
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;
  ~Pin();
  explicit operator bool() const { return entry_ != nullptr; }
  bool on_host() const;  // whether the host may read the bytes
  absl::Span<const std::byte> primary() const;
  absl::Span<const std::byte> refinement() const;  // empty when there is none (any more)
  const SlabKey& key() const;
  const SlabTag& tag() const;
  uint64_t stored_bytes() const;  // as accounted, rounding included

 private:
  friend class Reservation;
  friend class Store;
  std::shared_ptr<SlabEntry> entry_;
  Store* store_ = nullptr;
};

// Thread-safe. Outlives its reservations and pins.
class Store {
 public:
  // InvalidArgument names the option and both values.
  static absl::StatusOr<std::unique_ptr<Store>> Create(StoreOptions options);
  ~Store();

  // AlreadyExists: published, or being filled by another. ResourceExhausted: no room even after
  // dropping refinements of unpinned slabs and evicting unpinned ones (least recently used first);
  // a slab that cannot fit beside what is pinned and reserved evicts nothing. InvalidArgument:
  // primary_bytes is 0.
  // With kRefuse ResourceExhausted comes at once, and is not counted.
  absl::StatusOr<Reservation> Reserve(const SlabKey& key, const SlabTag& tag, size_t primary_bytes,
                                      size_t refinement_bytes,
                                      Pressure pressure = Pressure::kEvict);

  // Room for a copy of a slab that is pinned in another store, with its tag; without a refinement
  // when the original is about to lose its own. Erase and DropRefinement reach it before it is
  // published: nobody finds it then, or its refinement. NotFound: the original was erased. Other
  // errors as of Reserve.
  absl::StatusOr<Reservation> ReserveCopy(const Pin& original,
                                          Pressure pressure = Pressure::kEvict);

  // Says that slabs of these sizes will come: what takes time can be done before.
  void Expect(size_t primary_bytes, size_t refinement_bytes);

  // An empty pin when the slab is not here. Counts as a use for the LRU order, now and not when the
  // pin goes: find the blocks of a chain from the last to the first, and the prefix outlives its
  // tail.
  Pin Find(const SlabKey& key);

  // The same without counting as a use: for walks over everything.
  Pin Peek(const SlabKey& key);

  // Pins the slab that pressure would evict first; empty when all are pinned. No use either.
  Pin PinColdest();

  // Frees the refinement of a slab; when it is pinned, as soon as it no longer is. False when there
  // is none, or it is about to go already.
  bool DropRefinement(const SlabKey& key);

  // Removes a slab from the index at once; its bytes are freed when the last pin is gone. False
  // when not here (a slab that is still being filled is not here).
  bool Erase(const SlabKey& key);

  // The same for the very slab that is pinned here: false when it was erased before, even if there
  // is another one under its key by now.
  bool Erase(const Pin& pin);

  // Whether the slab is published or being filled.
  bool Holds(const SlabKey& key) const;

  bool on_host() const;  // whether the host may read and write the bytes of slabs

  // Calls `visit` for the keys of all published slabs of a scope (a snapshot; slabs may vanish
  // meanwhile). `visit` may call the store.
  void ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const;

  StoreStats Stats() const;

  // Quickly, as of Stats: what slabs take; and memory that slabs of any size can have, which may be
  // less than the rest where granules are large.
  uint64_t used_bytes() const;
  uint64_t available_bytes() const;

  // Sums and counts that must agree; an error says which do not. For tests and `fqctl verify`:
  // reservations and releases wait while it looks at every slab.
  absl::Status CheckInvariants() const;

 private:
  friend class Reservation;
  friend class Pin;
  class Core;
  explicit Store(std::unique_ptr<Core> core);
  absl::StatusOr<Reservation> ReserveFor(std::shared_ptr<SlabEntry> entry, size_t primary_bytes,
                                         size_t refinement_bytes, Pressure pressure);
  std::unique_ptr<Core> core_;
};

}  // namespace fq
