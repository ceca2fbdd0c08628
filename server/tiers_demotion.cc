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
  return waiting_ > 0 || device_->used_bytes() > high_bytes_ ||
         device_->available_bytes() < least_available_bytes_;
}

// What leaves may free holes only; then another round looks again.
bool Tiers::HasRoom(uint64_t leaving_bytes) const {
  return (waiting_ == 0 || leaving_bytes > 0) &&
         device_->used_bytes() <= low_bytes_ + leaving_bytes &&
         device_->available_bytes() + leaving_bytes >= 2 * least_available_bytes_;
}

void Tiers::StopDemotion() {
  if (!demotion_.joinable()) return;
  {
    absl::MutexLock lock(&demotion_mu_);
    stopping_ = true;
    wake_.Signal();
    round_ended_.SignalAll();
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
    if (!DemoteToLowWatermark()) return;
  }
}

// The next batch is queued before the one before it is waited for.
bool Tiers::DemoteToLowWatermark() {
  Batch leaving;
  for (size_t turn = 0; has_device(); ++turn) {
    const bool enough = HasRoom(leaving.bytes);  // asked once: it changes under us
    Batch next;
    if (!enough) next = StartBatch(*moves_[turn % moves_.size()], leaving.bytes);
    Batch done = std::exchange(leaving, std::move(next));
    FinishBatch(done);
    if (done.left > 0) EndRound(/*made_room=*/true);
    const bool began = !leaving.moves.empty() || leaving.left > 0;
    if (done.status.ok() && (done.left > 0 || began)) continue;
    if (done.status.ok() && enough) return true;
    FinishBatch(leaving);
    EndRound(/*made_room=*/leaving.left > 0);
    leaving = Batch();
    if (!Pause()) return false;
  }
  FinishBatch(leaving);
  EndRound(/*made_room=*/false);
  return true;
}

void Tiers::EndRound(bool made_room) {
  absl::MutexLock lock(&demotion_mu_);
  stuck_ = !made_room;
  if (made_room) rounds_.fetch_add(1);
  round_ended_.SignalAll();
}

bool Tiers::AwaitRoom(uint64_t rounds, MonotonicTime until) {
  absl::MutexLock lock(&demotion_mu_);
  if (!demotion_.joinable() || stuck_ || waiting_ >= most_waiting_) return false;
  waiting_.fetch_add(1);
  waits_.fetch_add(1, std::memory_order_relaxed);
  wake_.Signal();
  while (rounds_ == rounds && !stuck_ && !stopping_ && SteadyNow() < until) {
    round_ended_.WaitWithTimeout(&demotion_mu_, absl::FromChrono(until - SteadyNow()));
  }
  waiting_.fetch_sub(1);
  return rounds_ != rounds;
}

bool Tiers::AwaitPressure() {
  absl::MutexLock lock(&demotion_mu_);
  while (!stopping_ && (!has_device() || !IsShort())) {
    wake_.Wait(&demotion_mu_);
  }
  stuck_ = false;
  return !stopping_;
}

bool Tiers::Pause() {
  absl::MutexLock lock(&demotion_mu_);
  if (!stopping_) wake_.WaitWithTimeout(&demotion_mu_, kPause);
  return !stopping_;
}

// Room on the host for the coldest slabs, and their copies on their way.
Tiers::Batch Tiers::StartBatch(DeviceQueue& queue, uint64_t leaving_bytes) {
  const uint64_t used_bytes = device_->used_bytes(), wanted_most = low_bytes_ + leaving_bytes;
  const uint64_t excess_bytes =
      used_bytes > wanted_most ? used_bytes - wanted_most : least_available_bytes_;
  const uint64_t wanted_bytes = std::min(excess_bytes, kBatchBytes);
  Batch batch;
  batch.queue = &queue;
  for (uint64_t bytes = 0; bytes < wanted_bytes;) {
    Pin pin = device_->PinColdest();
    if (!pin) break;
    bytes += pin.stored_bytes();
    absl::StatusOr<Reservation> room = ReserveBelow(pin);
    if (absl::IsResourceExhausted(room.status())) break;
    if (absl::IsAlreadyExists(room.status())) ++batch.left;
    if (!room.ok()) continue;
    batch.bytes += pin.stored_bytes();
    batch.moves.push_back({std::move(pin), *std::move(room)});
    batch.status.Update(QueueCopies(batch.moves.back(), queue));
  }
  if (batch.moves.empty()) return batch;
  absl::MutexLock lock(&demotion_mu_);
  stuck_ = false;  // these are worth waiting for
  return batch;
}

// Slabs are published on the host coldest first, so that their order of use is kept, and before
// they leave the device, so that they are found all the time. Their room is free on return.
void Tiers::FinishBatch(Batch& batch) {
  std::vector<Move> moves = std::exchange(batch.moves, {});
  if (moves.empty()) return;
  batch.status.Update(batch.queue->Finish());
  if (!batch.status.ok()) failed_demotions_.fetch_add(1, std::memory_order_relaxed);
  for (Move& move : moves) {
    if (!batch.status.ok()) break;
    const Pin below = std::move(move.to).Publish();
    if (TakeFromDevice(move.from)) ++batch.left;
  }
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

absl::Status Tiers::QueueCopies(const Move& move, DeviceQueue& queue) {
  FQ_RETURN_IF_ERROR(queue.CopyToHost(move.to.primary(), move.from.primary().data()));
  if (move.to.refinement().empty()) return absl::OkStatus();
  return queue.CopyToHost(move.to.refinement(), move.from.refinement().data());
}

// False when it was erased meanwhile: then its copy has gone the same way.
bool Tiers::TakeFromDevice(const Pin& pin) {
  if (!device_->Erase(pin)) return false;
  demoted_slabs_.fetch_add(1, std::memory_order_relaxed);
  demoted_bytes_.fetch_add(pin.stored_bytes(), std::memory_order_relaxed);
  return true;
}

// Quickly for sizes that were seen before: the host's pool may be busy getting memory.
void Tiers::ExpectBelow(size_t primary_bytes, size_t refinement_bytes) {
  if (!demotion_.joinable()) return;
  {
    absl::MutexLock lock(&expected_mu_);
    const bool is_new = expected_.insert(primary_bytes).second;
    if (!expected_.insert(refinement_bytes).second && !is_new) return;
  }
  host_->Expect(primary_bytes, refinement_bytes);
}

}  // namespace fq
