#include "server/store/store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/memory/host_space.h"
#include "server/store/core.h"

namespace fq {
namespace {

constexpr uint32_t kMaxShards = 1024;

absl::Status Validate(const StoreOptions& options) {
  const uint64_t least_bytes = options.space->granule_bytes();
  if (options.capacity_bytes < least_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_bytes is ", options.capacity_bytes,
                                                   ", must be at least ", least_bytes));
  }
  const uint32_t shards = options.shards;
  if (shards == 0 || shards > kMaxShards || (shards & (shards - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("shards is ", shards, ", must be a power of two of at most ", kMaxShards));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Create(StoreOptions options) {
  if (options.space == nullptr) options.space = CreateHostSpace();
  if (absl::Status status = Validate(options); !status.ok()) return status;
  return std::unique_ptr<Store>(new Store(std::make_unique<Core>(options)));
}

Store::Store(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Store::~Store() = default;

absl::StatusOr<Reservation> Store::Reserve(const SlabKey& key, const SlabTag& tag,
                                           size_t primary_bytes, size_t refinement_bytes,
                                           Pressure pressure) {
  return ReserveFor(std::make_shared<SlabEntry>(key, tag), primary_bytes, refinement_bytes,
                    pressure);
}

void Store::Expect(size_t primary_bytes, size_t refinement_bytes) {
  core_->Expect(primary_bytes, refinement_bytes);
}

absl::StatusOr<Reservation> Store::ReserveCopy(const Pin& original, Pressure pressure) {
  const Fate fate = original.store_->core_->FateOf(*original.entry_);
  if (fate.erased) return absl::NotFoundError("the slab was erased while it was pinned");
  return ReserveFor(
      std::make_shared<SlabEntry>(original.key(), original.tag(), SlabEntry::Origin::kCopy),
      original.primary().size(), fate.refinement_dropped ? 0 : original.refinement().size(),
      pressure);
}

absl::StatusOr<Reservation> Store::ReserveFor(std::shared_ptr<SlabEntry> new_entry,
                                              size_t primary_bytes, size_t refinement_bytes,
                                              Pressure pressure) {
  auto entry = core_->Reserve(std::move(new_entry), primary_bytes, refinement_bytes, pressure);
  if (!entry.ok()) return entry.status();
  Reservation reservation;
  reservation.entry_ = *std::move(entry);
  reservation.store_ = this;
  return reservation;
}

Pin Store::Find(const SlabKey& key) {
  Pin pin;
  pin.entry_ = core_->Pin(key);
  pin.store_ = this;
  return pin;
}

Pin Store::Peek(const SlabKey& key) {
  Pin pin;
  pin.entry_ = core_->PinUnused(key);
  pin.store_ = this;
  return pin;
}

Pin Store::PinColdest() {
  Pin pin;
  pin.entry_ = core_->PinColdest();
  pin.store_ = this;
  return pin;
}

bool Store::DropRefinement(const SlabKey& key) { return core_->DropRefinement(key); }
bool Store::Erase(const SlabKey& key) { return core_->Erase(key); }
bool Store::Erase(const Pin& pin) { return core_->ErasePinned(*pin.entry_); }
bool Store::Holds(const SlabKey& key) const { return core_->Holds(key); }
bool Store::on_host() const { return core_->on_host(); }

void Store::ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const {
  core_->ForEachKey(scope, visit);
}

StoreStats Store::Stats() const { return core_->Stats(); }
uint64_t Store::used_bytes() const { return core_->used_bytes(); }
uint64_t Store::available_bytes() const { return core_->available_bytes(); }
absl::Status Store::CheckInvariants() const { return core_->CheckInvariants(); }

Reservation::Reservation(Reservation&& other) noexcept
    : entry_(std::move(other.entry_)), store_(other.store_) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  Reservation taken(std::move(other));  // frees at its end what this one held before
  std::swap(entry_, taken.entry_);
  std::swap(store_, taken.store_);
  return *this;
}

Reservation::~Reservation() {
  if (entry_ != nullptr) store_->core_->Abandon(entry_);
}

absl::Span<std::byte> Reservation::primary() const {
  return entry_ != nullptr ? entry_->primary.span() : absl::Span<std::byte>();
}

absl::Span<std::byte> Reservation::refinement() const {
  return entry_ != nullptr ? entry_->refinement.span() : absl::Span<std::byte>();
}

Pin Reservation::Publish() && {
  Pin pin;
  if (entry_ == nullptr) return pin;
  store_->core_->Publish(*entry_);
  pin.entry_ = std::move(entry_);
  pin.store_ = store_;
  return pin;
}

Pin::Pin(Pin&& other) noexcept : entry_(std::move(other.entry_)), store_(other.store_) {}

Pin& Pin::operator=(Pin&& other) noexcept {
  Pin taken(std::move(other));  // lets go at its end of what this one held before
  std::swap(entry_, taken.entry_);
  std::swap(store_, taken.store_);
  return *this;
}

Pin::~Pin() {
  if (entry_ != nullptr) store_->core_->Unpin(entry_);
}

bool Pin::on_host() const { return store_->on_host(); }
absl::Span<const std::byte> Pin::primary() const { return entry_->primary.span(); }
absl::Span<const std::byte> Pin::refinement() const { return entry_->refinement.span(); }
const SlabKey& Pin::key() const { return entry_->key; }
const SlabTag& Pin::tag() const { return entry_->tag; }
uint64_t Pin::stored_bytes() const { return entry_->stored_bytes(); }

}  // namespace fq
