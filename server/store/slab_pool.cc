#include "server/store/slab_pool.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

// Keeps a chunk in the sets of its class that say what it has to offer.
void Refile(Chunk* chunk, std::set<Chunk*>& with_idle, std::set<Chunk*>& with_fresh) {
  if (chunk->has_idle()) {
    with_idle.insert(chunk);
  } else {
    with_idle.erase(chunk);
  }
  if (chunk->has_fresh()) {
    with_fresh.insert(chunk);
  } else {
    with_fresh.erase(chunk);
  }
}

absl::Status Disagree(const char* what, uint64_t total, uint64_t sum) {
  return absl::InternalError(
      absl::StrCat("pool: ", what, " is ", total, " but the chunks add up to ", sum));
}

}  // namespace

std::optional<Extent> SlabPool::Allocate(size_t bytes) {
  if (bytes == 0) return Extent{};
  if (bytes > capacity_bytes_) return std::nullopt;
  const size_t slot_bytes = Extent::Round(bytes);
  absl::MutexLock lock(&mu_);
  std::unique_ptr<SizeClass>& size_class = classes_[slot_bytes];
  if (size_class == nullptr) size_class = std::make_unique<SizeClass>();
  std::optional<Extent> extent = TakeIdle(*size_class);
  if (!extent) extent = TakeFresh(*size_class, slot_bytes);
  if (!extent) {
    if (size_class->chunks.empty()) classes_.erase(slot_bytes);
    return std::nullopt;
  }
  extent->bytes = bytes;
  usage_.used_bytes += slot_bytes;
  usage_.requested_bytes += bytes;
  return extent;
}

std::optional<Extent> SlabPool::TakeIdle(SizeClass& size_class) {
  if (size_class.with_idle.empty()) return std::nullopt;
  Chunk* chunk = *size_class.with_idle.begin();
  const uint32_t slot = chunk->TakeIdle();
  usage_.idle_bytes -= chunk->slot_bytes();
  Refile(chunk, size_class.with_idle, size_class.with_fresh);
  return Extent{chunk->data(slot), 0, chunk, slot};
}

std::optional<Extent> SlabPool::TakeFresh(SizeClass& size_class, size_t slot_bytes) {
  Chunk* chunk = ChunkWithFresh(size_class, slot_bytes);
  if (chunk == nullptr) return std::nullopt;
  const size_t fresh_bytes = chunk->NextFreshBytes();
  if (!MakeResident(fresh_bytes)) {
    if (chunk->empty()) Unmap(size_class, chunk);
    return std::nullopt;
  }
  const uint32_t slot = chunk->TakeFresh();
  usage_.resident_bytes += fresh_bytes;
  Refile(chunk, size_class.with_idle, size_class.with_fresh);
  return Extent{chunk->data(slot), 0, chunk, slot};
}

Chunk* SlabPool::ChunkWithFresh(SizeClass& size_class, size_t slot_bytes) {
  if (!size_class.with_fresh.empty()) return *size_class.with_fresh.begin();
  std::unique_ptr<Chunk> mapped =
      Chunk::Map(slot_bytes, std::max<size_t>(1, capacity_bytes_ / slot_bytes));
  if (mapped == nullptr) return nullptr;
  Chunk* chunk = mapped.get();
  size_class.chunks.emplace(chunk, std::move(mapped));
  Refile(chunk, size_class.with_idle, size_class.with_fresh);
  return chunk;
}

// Takes idle memory from other sizes until `bytes` more fit; takes none when all of it is too
// little, for then the caller evicts, and what is idle may be just what that size needs next. The
// size that asks has none idle.
bool SlabPool::MakeResident(size_t bytes) {
  if (usage_.resident_bytes + bytes > capacity_bytes_ + usage_.idle_bytes) return false;
  while (usage_.resident_bytes + bytes > capacity_bytes_) {
    if (!ReleaseOneIdle()) return false;
  }
  return true;
}

bool SlabPool::ReleaseOneIdle() {
  for (auto& [slot_bytes, size_class] : classes_) {
    if (size_class->with_idle.empty()) continue;
    Chunk* chunk = *size_class->with_idle.rbegin();
    const size_t before_bytes = chunk->resident_bytes();
    chunk->ReleaseIdle();
    usage_.resident_bytes -= before_bytes - chunk->resident_bytes();
    usage_.idle_bytes -= slot_bytes;
    Refile(chunk, size_class->with_idle, size_class->with_fresh);
    return true;
  }
  return false;
}

void SlabPool::Free(const Extent& extent) {
  if (extent.empty()) return;
  absl::MutexLock lock(&mu_);
  usage_.used_bytes -= extent.stored_bytes();
  usage_.requested_bytes -= extent.bytes;
  SizeClass& size_class = *classes_.at(extent.stored_bytes());
  usage_.idle_bytes += extent.stored_bytes();
  extent.chunk->Free(extent.slot);
  Refile(extent.chunk, size_class.with_idle, size_class.with_fresh);
  if (!extent.chunk->empty()) return;
  Unmap(size_class, extent.chunk);
  if (size_class.chunks.empty()) classes_.erase(extent.stored_bytes());
}

void SlabPool::Unmap(SizeClass& size_class, Chunk* chunk) {
  usage_.resident_bytes -= chunk->resident_bytes();
  usage_.idle_bytes -= chunk->idle_count() * chunk->slot_bytes();
  size_class.with_idle.erase(chunk);
  size_class.with_fresh.erase(chunk);
  size_class.chunks.erase(chunk);
}

uint64_t SlabPool::AvailableBytes() const {
  absl::MutexLock lock(&mu_);
  return capacity_bytes_ - usage_.resident_bytes + usage_.idle_bytes;
}

SlabPoolUsage SlabPool::Usage() const {
  absl::MutexLock lock(&mu_);
  return usage_;
}

absl::Status SlabPool::CheckInvariants() const {
  absl::MutexLock lock(&mu_);
  uint64_t used_bytes = 0, idle_bytes = 0, resident_bytes = 0;
  for (const auto& [slot_bytes, size_class] : classes_) {
    for (const auto& [chunk, owner] : size_class->chunks) {
      used_bytes += chunk->live_count() * slot_bytes;
      idle_bytes += chunk->idle_count() * slot_bytes;
      resident_bytes += chunk->resident_bytes();
    }
  }
  if (used_bytes != usage_.used_bytes) {
    return Disagree("used_bytes", usage_.used_bytes, used_bytes);
  }
  if (idle_bytes != usage_.idle_bytes) {
    return Disagree("idle_bytes", usage_.idle_bytes, idle_bytes);
  }
  if (resident_bytes != usage_.resident_bytes) {
    return Disagree("resident_bytes", usage_.resident_bytes, resident_bytes);
  }
  if (resident_bytes > capacity_bytes_) {
    return absl::InternalError(absl::StrCat("pool: ", resident_bytes,
                                            " bytes are resident, capacity is ", capacity_bytes_));
  }
  return absl::OkStatus();
}

}  // namespace fq
