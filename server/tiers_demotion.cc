// The part of Tiers that moves the coldest slabs of the device to the host.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "kernels/base/status_macros.h"
#include "server/tiers.h"

namespace fq {
namespace {

// What is copied between two waits for the device; the pins of a batch keep its slabs from being
// evicted meanwhile.
constexpr uint64_t kBatchBytes = uint64_t{32} << 20;

// After a batch that got nowhere: the copies failed, the host is full, everything is pinned.
constexpr absl::Duration kPause = absl::Milliseconds(100);

}  // namespace

void Tiers::StartDemotion(const TiersOptions& options) {
  const auto capacity_bytes = static_cast<double>(options.device->capacity_bytes);
  high_bytes_ = static_cast<uint64_t>(capacity_bytes * options.high_watermark);
  low_bytes_ = static_cast<uint64_t>(capacity_bytes * options.low_watermark);
  least_available_bytes_ = options.device->capacity_bytes / 64;
  demotion_ = std::thread([this] { DemoteUntilStopped(); });
}

// What a new size needs is whole granules, and evicting would free them in the same order.
bool Tiers::IsShort() const {
  return device_->used_bytes() > high_bytes_ || device_->available_bytes() < least_available_bytes_;
}

bool Tiers::HasRoom() const {
  return device_->used_bytes() <= low_bytes_ &&
         device_->available_bytes() >= 2 * least_available_bytes_;
}

void Tiers::StopDemotion() {
  if (!demotion_.joinable()) return;
  {
    absl::MutexLock lock(&demotion_mu_);
    stopping_ = true;
    wake_.Signal();
  }
  demotion_.join();
}

void Tiers::WakeDemotion() {
  if (!demotion_.joinable() || !IsShort()) return;
  absl::MutexLock lock(&demotion_mu_);
  wake_.Signal();
}

void Tiers::DemoteUntilStopped() {
  while (AwaitPressure()) {
    while (has_device() && !HasRoom()) {
      const absl::StatusOr<size_t> left = DemoteBatch();
      if (!left.ok()) failed_demotions_.fetch_add(1, std::memory_order_relaxed);
      const bool stuck = !left.ok() || *left == 0;
      if (stuck && !Pause()) return;
    }
  }
}

bool Tiers::AwaitPressure() {
  absl::MutexLock lock(&demotion_mu_);
  while (!stopping_ && (!has_device() || !IsShort())) {
    wake_.Wait(&demotion_mu_);
  }
  return !stopping_;
}

bool Tiers::Pause() {
  absl::MutexLock lock(&demotion_mu_);
  if (!stopping_) wake_.WaitWithTimeout(&demotion_mu_, kPause);
  return !stopping_;
}

// How many slabs left the device. They are published on the host coldest first, so that their order
// of use is kept, and before they leave the device, so that they are found all the time.
absl::StatusOr<size_t> Tiers::DemoteBatch() {
  const uint64_t used_bytes = device_->used_bytes();
  const uint64_t excess_bytes =
      used_bytes > low_bytes_ ? used_bytes - low_bytes_ : least_available_bytes_;
  const uint64_t wanted_bytes = std::min(excess_bytes, kBatchBytes);
  std::vector<Move> moves;
  size_t left = 0;
  for (uint64_t bytes = 0; bytes < wanted_bytes;) {
    Pin pin = device_->PinColdest();
    if (!pin) break;
    bytes += pin.stored_bytes();
    absl::StatusOr<Reservation> room = ReserveBelow(pin);
    if (absl::IsResourceExhausted(room.status())) break;
    if (absl::IsAlreadyExists(room.status())) ++left;
    if (room.ok()) moves.push_back({std::move(pin), *std::move(room)});
  }
  FQ_RETURN_IF_ERROR(CopyDown(absl::MakeSpan(moves)));
  for (Move& move : moves) {
    const Pin below = std::move(move.to).Publish();
    if (TakeFromDevice(move.from)) ++left;
  }
  return left;
}

// AlreadyExists: the host had it, with all that the device has; then it has left the device.
absl::StatusOr<Reservation> Tiers::ReserveBelow(const Pin& pin) {
  absl::MutexLock lock(&MutexOf(pin.key()));
  if (const Pin below = host_->Find(pin.key())) {
    if (below.refinement().size() >= pin.refinement().size()) {
      TakeFromDevice(pin);
      return absl::AlreadyExistsError("the host holds the slab");
    }
    host_->Erase(below);
  }
  return host_->ReserveCopy(pin);
}

absl::Status Tiers::CopyDown(absl::Span<Move> moves) {
  absl::Status status;
  for (Move& move : moves) {
    status.Update(moves_->CopyToHost(move.to.primary(), move.from.primary().data()));
    if (move.to.refinement().empty()) continue;
    status.Update(moves_->CopyToHost(move.to.refinement(), move.from.refinement().data()));
  }
  status.Update(moves_->Finish());
  return status;
}

// False when it was erased meanwhile: then its copy has gone the same way.
bool Tiers::TakeFromDevice(const Pin& pin) {
  if (!device_->Erase(pin)) return false;
  demoted_slabs_.fetch_add(1, std::memory_order_relaxed);
  demoted_bytes_.fetch_add(pin.stored_bytes(), std::memory_order_relaxed);
  return true;
}

}  // namespace fq
