#include "server/tiers.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {

absl::StatusOr<std::unique_ptr<Tiers>> Tiers::Create(TiersOptions options) {
  const double high = options.high_watermark, low = options.low_watermark;
  if (!(low > 0 && low <= high && high <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("low_watermark is ", low, ", high_watermark is ",
                                                   high, ", must be 0 < low <= high <= 1"));
  }
  FQ_ASSIGN_OR_RETURN(auto host, Store::Create(options.host));
  std::unique_ptr<Store> device;
  if (options.device) {
    FQ_ASSIGN_OR_RETURN(device, Store::Create(*options.device));
  }
  return std::unique_ptr<Tiers>(new Tiers(std::move(host), std::move(device), options));
}

Tiers::Tiers(std::unique_ptr<Store> host, std::unique_ptr<Store> device, TiersOptions& options)
    : host_(std::move(host)),
      device_(std::move(device)),
      moves_(std::move(options.moves)),
      most_waiting_(options.most_waiting) {
  if (device_ != nullptr && !moves_.empty()) StartDemotion(options);
}

Tiers::~Tiers() { StopDemotion(); }

absl::Mutex& Tiers::MutexOf(const SlabKey& key) const {
  return mutexes_[(absl::Hash<SlabKey>()(key) >> 32) % kMutexes];
}

// A slab on its way down is published on the host before it leaves the device, so this order never
// misses it. On its way up it stays on the host, unless it is evicted there just then: a miss.
Pin Tiers::Find(const SlabKey& key) {
  if (Store* on_device = OnDevice()) {
    if (Pin pin = on_device->Find(key)) return pin;
  }
  return host_->Find(key);
}

Pin Tiers::Peek(const SlabKey& key) {
  if (Store* on_device = OnDevice()) {
    if (Pin pin = on_device->Peek(key)) return pin;
  }
  return host_->Peek(key);
}

absl::StatusOr<Reservation> Tiers::Reserve(Tier tier, const SlabKey& key, const SlabTag& tag,
                                           size_t primary_bytes, size_t refinement_bytes,
                                           MonotonicTime wait_until) {
  Store* on_device = OnDevice();
  if (tier == Tier::kHost) {
    return ReserveIn(host_.get(), on_device, key, tag, primary_bytes, refinement_bytes,
                     Pressure::kEvict);
  }
  if (on_device == nullptr) return absl::FailedPreconditionError("the node has no device tier");
  ExpectBelow(primary_bytes, refinement_bytes);
  return ReserveOnDevice(wait_until, [&](Pressure pressure) {
    return ReserveIn(on_device, host_.get(), key, tag, primary_bytes, refinement_bytes, pressure);
  });
}

absl::StatusOr<Reservation> Tiers::ReserveOnDevice(
    MonotonicTime wait_until, const std::function<absl::StatusOr<Reservation>(Pressure)>& reserve) {
  const bool may_wait = wait_until != MonotonicTime{};
  while (may_wait) {
    const uint64_t rounds = rounds_.load();
    absl::StatusOr<Reservation> room = reserve(Pressure::kRefuse);
    if (!absl::IsResourceExhausted(room.status())) {
      WakeDemotion();
      return room;
    }
    if (!AwaitRoom(rounds, wait_until)) break;
  }
  absl::StatusOr<Reservation> room = reserve(Pressure::kEvict);
  WakeDemotion();
  return room;
}

absl::StatusOr<Reservation> Tiers::ReserveIn(Store* store, Store* other, const SlabKey& key,
                                             const SlabTag& tag, size_t primary_bytes,
                                             size_t refinement_bytes, Pressure pressure) {
  absl::MutexLock lock(&MutexOf(key));
  if (other != nullptr && other->Holds(key)) {
    return absl::AlreadyExistsError("the other tier holds the slab");
  }
  return store->Reserve(key, tag, primary_bytes, refinement_bytes, pressure);
}

absl::StatusOr<Reservation> Tiers::ReserveCopy(const Pin& host_pin, MonotonicTime wait_until) {
  Store* on_device = OnDevice();
  if (on_device == nullptr) return absl::FailedPreconditionError("the node has no device tier");
  absl::StatusOr<Reservation> room = ReserveOnDevice(wait_until, [&](Pressure pressure) {
    absl::MutexLock lock(&MutexOf(host_pin.key()));
    return on_device->ReserveCopy(host_pin, pressure);
  });
  if (!room.ok()) return room;
  promoted_slabs_.fetch_add(1, std::memory_order_relaxed);
  promoted_bytes_.fetch_add(room->primary().size() + room->refinement().size(),
                            std::memory_order_relaxed);
  return room;
}

bool Tiers::Erase(const SlabKey& key) {
  absl::MutexLock lock(&MutexOf(key));
  const bool was_on_device = device_ != nullptr && device_->Erase(key);
  return host_->Erase(key) || was_on_device;
}

bool Tiers::DropRefinement(const SlabKey& key) {
  absl::MutexLock lock(&MutexOf(key));
  const bool was_on_device = device_ != nullptr && device_->DropRefinement(key);
  return host_->DropRefinement(key) || was_on_device;
}

// The device twice, because a slab may come up between the two and be evicted below.
void Tiers::ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const {
  absl::flat_hash_set<SlabKey> keys;
  const auto collect = [&](const SlabKey& key) { keys.insert(key); };
  if (const Store* on_device = OnDevice()) on_device->ForEachKey(scope, collect);
  host_->ForEachKey(scope, collect);
  if (const Store* on_device = OnDevice()) on_device->ForEachKey(scope, collect);
  for (const SlabKey& key : keys) visit(key);
}

TierStats Tiers::Stats() const {
  TierStats stats;
  stats.host = host_->Stats();
  if (device_ != nullptr) stats.device = device_->Stats();
  stats.demoted_slabs = demoted_slabs_.load(std::memory_order_relaxed);
  stats.demoted_bytes = demoted_bytes_.load(std::memory_order_relaxed);
  stats.failed_demotions = failed_demotions_.load(std::memory_order_relaxed);
  stats.waits = waits_.load(std::memory_order_relaxed);
  stats.promoted_slabs = promoted_slabs_.load(std::memory_order_relaxed);
  stats.promoted_bytes = promoted_bytes_.load(std::memory_order_relaxed);
  return stats;
}

absl::Status Tiers::CheckInvariants() const {
  FQ_RETURN_IF_ERROR(host_->CheckInvariants());
  return device_ != nullptr ? device_->CheckInvariants() : absl::OkStatus();
}

}  // namespace fq
