// What the host tier costs beside the copy of the bytes: reserve + publish, find, and reserve under
// pressure, where each new slab drops or evicts an older one. Slabs are not filled unless the name
// says so; sizes are those of SmolLM2-135M blocks (base, refinement, exact).
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <utility>

#include "server/store/store.h"

namespace fq {
namespace {

constexpr size_t kBaseBytes = 380 << 10;
constexpr size_t kRefinementBytes = 368 << 10;
constexpr uint32_t kSlabs = 2048;

SlabKey Key(uint64_t n) {
  SlabKey key;
  std::memcpy(key.block.data(), &n, sizeof(n));
  return key;
}

bool Put(Store& store, uint64_t n, size_t refinement_bytes, bool fill) {
  auto room = store.Reserve(Key(n), SlabTag{}, kBaseBytes, refinement_bytes);
  if (!room.ok()) return false;
  if (fill) std::memset(room->primary().data(), 1, room->primary().size());
  std::move(*room).Publish();
  return true;
}

std::unique_ptr<Store> g_store;  // shared by the threads of one run; made and dropped by thread 0

void ReservePublishErase(benchmark::State& state) {
  if (state.thread_index() == 0) g_store = Store::Create({uint64_t{1} << 30, 16}).value();
  uint64_t n = uint64_t{1} << (32 + state.thread_index());
  // One slab stays, so that its chunk does too.
  for (auto _ : state) {
    if (n % 1024 == 0) Put(*g_store, n + (1 << 20), 0, false);
    Put(*g_store, ++n, 0, false);
    g_store->Erase(Key(n));
  }
  state.SetItemsProcessed(state.iterations());
  if (state.thread_index() == 0) g_store.reset();
}
BENCHMARK(ReservePublishErase)->Threads(1)->Threads(2)->UseRealTime();

void FindAndRelease(benchmark::State& state) {
  if (state.thread_index() == 0) {
    g_store = Store::Create({uint64_t{1} << 30, 16}).value();
    for (uint32_t n = 0; n < kSlabs; ++n) Put(*g_store, n, 0, false);
  }
  uint64_t n = state.thread_index() * 977, found = 0;
  for (auto _ : state) found += static_cast<bool>(g_store->Find(Key(n++ % kSlabs)));
  if (found != static_cast<uint64_t>(state.iterations())) state.SkipWithError("a slab is missing");
  state.SetItemsProcessed(state.iterations());
  if (state.thread_index() == 0) g_store.reset();
}
BENCHMARK(FindAndRelease)->Threads(1)->Threads(2)->UseRealTime();

void FindMiss(benchmark::State& state) {
  const auto store = Store::Create({uint64_t{1} << 30, 16}).value();
  for (uint32_t n = 0; n < kSlabs; ++n) Put(*store, n, 0, false);
  uint64_t n = kSlabs;
  for (auto _ : state) benchmark::DoNotOptimize(store->Find(Key(n++)));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(FindMiss);

// Arguments: refinement bytes, whether the slab is filled.
void ReserveUnderPressure(benchmark::State& state) {
  const size_t refinement_bytes = state.range(0);
  const bool fill = state.range(1) != 0;
  if (state.thread_index() == 0) {
    g_store = Store::Create({uint64_t{256} << 20, 16}).value();
    for (uint32_t n = 0; n < kSlabs; ++n) Put(*g_store, n, refinement_bytes, true);
  }
  uint64_t n = uint64_t{1} << (32 + state.thread_index());
  for (auto _ : state) Put(*g_store, ++n, refinement_bytes, fill);
  state.SetItemsProcessed(state.iterations());
  if (fill) state.SetBytesProcessed(state.iterations() * kBaseBytes);
  if (state.thread_index() == 0) {
    state.counters["evicted"] = static_cast<double>(g_store->Stats().evicted_slabs);
    g_store.reset();
  }
}
BENCHMARK(ReserveUnderPressure)
    ->ArgNames({"refinement", "fill"})
    ->Args({0, 0})
    ->Args({0, 1})
    ->Args({kRefinementBytes, 1})
    ->Threads(1)
    ->Threads(2)
    ->UseRealTime();

// Two sizes in turn: each eviction hands memory from one size to the other.
void ReserveUnderPressureTwoSizes(benchmark::State& state) {
  const auto store = Store::Create({uint64_t{256} << 20, 16}).value();
  uint64_t n = 0;
  for (auto _ : state) {
    ++n;
    auto room = store->Reserve(Key(n), SlabTag{}, n % 2 ? kBaseBytes : 4 * kBaseBytes, 0);
    std::memset(room->primary().data(), 1, room->primary().size());
    std::move(*room).Publish();
  }
  state.SetBytesProcessed(state.iterations() * kBaseBytes * 5 / 2);
}
BENCHMARK(ReserveUnderPressureTwoSizes);

void MemsetAlone(benchmark::State& state) {
  auto buffer = std::make_unique<std::byte[]>(256 << 20);
  size_t at = 0;
  for (auto _ : state) {
    std::memset(buffer.get() + at, 1, kBaseBytes);
    at = (at + kBaseBytes) % ((256 << 20) - kBaseBytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * kBaseBytes);
}
BENCHMARK(MemsetAlone);

}  // namespace
}  // namespace fq

BENCHMARK_MAIN();
