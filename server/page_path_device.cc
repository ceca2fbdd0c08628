// PagePath: pages in tensors on the GPU, slabs in its memory. Nothing passes through the host but
// slabs that only the host tier holds.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/page_path.h"
#include "server/quality_watch.h"

namespace fq {
namespace {

// Scope of room on the device that is never published; no SlabSpace has it.
constexpr uint64_t kStagingScope = UINT64_MAX;

// How long a call waits in all for demotion to make room on the device; then slabs are evicted.
constexpr Milliseconds kMostWait{50};

MonotonicTime WaitUntil(const CallContext& context) {
  return std::min(context.deadline, SteadyNow() + kMostWait);
}

// The layers of a caller's tensors as the kernels want them. Holds the memory that `rows` names.
struct CallerRows {
  CallerRows(const CallerPages& pages, const SlabShape& shape) {
    const PageLayout& layout = pages.pages.layout;
    const auto element = static_cast<int64_t>(ElementBytes(shape.dtype));
    for (std::byte* layer : pages.device->layers()) {
      layers.push_back({layer + layout.k_offset, layer + layout.v_offset});
    }
    rows.layers = layers;
    rows.token_stride = static_cast<int64_t>(layout.k_token_stride) / element;
    rows.head_stride = static_cast<int64_t>(layout.head_stride) / element;
    rows.tokens_per_chunk = static_cast<int32_t>(layout.tokens_per_chunk);
  }
  std::vector<DeviceRows::Layer> layers;
  DeviceRows rows;
};

DeviceBlock BlockAt(const BlockId& id, PageKind kind, const BlockPlace& place) {
  DeviceBlock block;
  block.id = id;
  block.kind = kind;
  block.first_token = static_cast<int32_t>(place.first_token);
  for (size_t i = 0; i < place.chunk_offsets.size(); ++i) {
    block.chunks[i] = static_cast<int32_t>(place.chunk_offsets[i] / kChunkUnitBytes);
  }
  return block;
}

// A DeviceBlock names memory that encode writes and decode reads, so it has no const of its own.
std::byte* Data(absl::Span<const std::byte> extent) {
  return extent.empty() ? nullptr : const_cast<std::byte*>(extent.data());
}

DeviceCall CallOf(DeviceWork work, const CallContext& context, const SlabSpace& space,
                  const CallerPages& pages, const CallerRows& rows) {
  DeviceCall call;
  call.work = work;
  call.still_wanted = [&context] { return context.Check(); };
  call.session = pages.session;
  call.codec = space.device_codec.get();
  call.rows = rows.rows;
  return call;
}

// Memory as the system gives it: what is never written costs nothing.
struct HostBuffer {
  std::unique_ptr<std::byte[]> data;
  size_t bytes = 0;
  absl::Span<const std::byte> span() const { return {data.get(), bytes}; }
};

// Copies of some pages of one block: their bytes in the extents, and the engine's rows.
struct FetchedPages {
  FetchedPages(const SlabSpace& s, const CallerPages& c, size_t block_index)
      : space(s), caller(c), place(c.pages.places[block_index]) {
    call.work = DeviceWork::kRead;
  }

  // Other bytes of the copy stay undefined; nobody reads them.
  void AddExtent(PageKind kind, bool sink, absl::Span<const int> sample,
                 absl::Span<const std::byte> extent) {
    extents.push_back({std::unique_ptr<std::byte[]>(new std::byte[extent.size()]), extent.size()});
    if (extent.empty()) return;
    for (int page : sample) {
      const auto part = space.codec->PageInExtent(kind, sink, page);
      if (!part.ok()) continue;  // not possible for what was just encoded
      call.downloads.push_back(
          {{extents.back().data.get() + part->offset, part->bytes}, extent.data() + part->offset});
    }
  }

  void AddRows(int page) {
    const PageLayout& layout = caller.pages.layout;
    const SlabShape& shape = space.shape();
    const std::byte* head = caller.device->layers()[static_cast<size_t>(page / shape.heads())] +
                            static_cast<uint64_t>(page % shape.heads()) * layout.head_stride;
    pages.push_back({Rows(head + layout.k_offset), Rows(head + layout.v_offset)});
  }

  // From the first row to the last of each chunk, what lies between them included.
  SourceRows Rows(const std::byte* begin) {
    const PageLayout& layout = caller.pages.layout;
    const auto element = static_cast<uint64_t>(ElementBytes(space.shape().dtype));
    const size_t bytes =
        (layout.tokens_per_chunk - 1) * layout.k_token_stride + space.shape().head_size * element;
    SourceRows rows;
    rows.tokens_per_chunk = static_cast<int32_t>(layout.tokens_per_chunk);
    rows.first_token = static_cast<int32_t>(place.first_token);
    rows.token_stride = static_cast<int64_t>(layout.k_token_stride / element);
    for (size_t i = 0; i < place.chunk_offsets.size(); ++i) {
      rows_memory.push_back({std::unique_ptr<std::byte[]>(new std::byte[bytes]), bytes});
      rows.chunks[i] = rows_memory.back().data.get();
      call.downloads.push_back(
          {{rows_memory.back().data.get(), bytes}, begin + place.chunk_offsets[i]});
    }
    return rows;
  }

  const SlabSpace& space;
  const CallerPages& caller;
  const BlockPlace& place;
  DeviceCall call;
  std::vector<HostBuffer> extents, rows_memory;
  std::vector<SourcePage> pages;
};

// Returns once the engine's stream has passed its event. Waits in the caller's thread, so that an
// engine that dies holds up nobody else's call.
absl::Status AwaitEngine(const CallContext& context, const WorkerEvent* event) {
  constexpr int kBusyPolls = 200;
  constexpr std::chrono::microseconds kPause{20};
  for (int polls = 0; event != nullptr; ++polls) {
    const absl::StatusOr<bool> done = event->Done();
    if (!done.ok()) {
      return absl::UnavailableError(absl::StrCat("the segment's event: ", done.status().message()));
    }
    if (*done) break;
    FQ_RETURN_IF_ERROR(context.Check());
    if (polls >= kBusyPolls) std::this_thread::sleep_for(kPause);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PagePath::CheckDevice() const {
  if (scheduler_ != nullptr && tiers_->has_device()) return absl::OkStatus();
  return absl::UnavailableError("the node's GPU is not in use");
}

absl::Status PagePath::RunOnDevice(DeviceCall& call) {
  FQ_RETURN_IF_ERROR(CheckDevice());
  const absl::Status status = scheduler_->Run(call);
  if (!absl::IsInternal(status)) return status;
  if (tiers_->has_device() && log_ != nullptr) {
    log_->Write(LogLevel::kError, "device_failed", {{"reason", std::string(status.message())}});
  }
  tiers_->DropDevice();  // whatever it holds cannot be trusted any more
  return absl::UnavailableError(absl::StrCat("the GPU failed: ", status.message()));
}

absl::Status PagePath::StoreFromDevice(const CallContext& context, const SlabSpace& space,
                                       const StoreCall& call, std::vector<BlockOutcome>& outcomes) {
  FQ_RETURN_IF_ERROR(context.Check());
  FQ_RETURN_IF_ERROR(CheckDevice());
  FQ_RETURN_IF_ERROR(AwaitEngine(context, call.source.device->event()));
  struct Reserved {
    size_t index;
    Plan plan;
    Reservation room;
  };
  std::vector<Pin> pins(call.keys.size());  // a batch must not evict its own first blocks
  std::vector<Reserved> reserved;
  const MonotonicTime wait_until = WaitUntil(context);
  const CallerRows rows(call.source, space.shape());
  DeviceCall work = CallOf(DeviceWork::kEncode, context, space, call.source, rows);
  for (size_t i = 0; i < call.keys.size(); ++i) {
    Reserved one{i, {}, {}};
    FQ_ASSIGN_OR_RETURN(one.plan, PlanOf(space, call, i));
    FQ_ASSIGN_OR_RETURN(
        outcomes[i], Reserve(Tier::kDevice, space, call, one.plan, one.room, pins[i], wait_until));
    if (outcomes[i] != BlockOutcome::kOk) continue;
    DeviceBlock block = BlockAt(one.plan.id, one.plan.kind, call.source.pages.places[i]);
    block.primary = Data(one.room.primary());
    block.refinement = Data(one.room.refinement());
    work.blocks.push_back(block);
    reserved.push_back(std::move(one));
  }
  if (reserved.empty()) return absl::OkStatus();
  const MonotonicTime begin = SteadyNow();
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  FQ_RETURN_IF_ERROR(context.Check());  // given up, the caller may have used its pages again
  for (const Reserved& one : reserved) MeasureOnDevice(space, call, one.plan, one.index, one.room);
  uint64_t coded_bytes = 0;
  for (Reserved& one : reserved) {
    pins[one.index] = std::move(one.room).Publish();
    coded_bytes += CodedBytes(pins[one.index]);
    CountStored(space, call, one.plan);
  }
  encode_rate_.Add(coded_bytes, SteadyNow() - begin);
  return absl::OkStatus();
}

// Fetches the sampled pages, coded and as the engine has them.
void PagePath::MeasureOnDevice(const SlabSpace& space, const StoreCall& call, const Plan& plan,
                               size_t index, const Reservation& room) {
  const std::vector<int> sample = quality_->PagesToMeasure(space, call.profile, plan.id.key);
  if (sample.empty()) return;
  FetchedPages fetched(space, call.source, index);
  fetched.AddExtent(PageKind::kBase, plan.id.index == 0, sample, room.primary());
  fetched.AddExtent(PageKind::kRefinement, plan.id.index == 0, sample, room.refinement());
  for (int page : sample) fetched.AddRows(page);
  if (!RunOnDevice(fetched.call).ok()) return;
  quality_->MeasureEncoded(space, call.profile,
                           {plan.id, fetched.extents[0].span(), fetched.extents[1].span()}, sample,
                           fetched.pages);
}

absl::StatusOr<PagePath::DeviceRoom> PagePath::RoomOnDevice(const Pin& host_pin,
                                                            MonotonicTime wait_until) {
  absl::StatusOr<Reservation> copy = tiers_->ReserveCopy(host_pin, wait_until);
  if (copy.ok() && copy->refinement().size() == host_pin.refinement().size()) {
    return DeviceRoom{*std::move(copy), /*publish=*/true};
  }
  if (!copy.ok() && !absl::IsAlreadyExists(copy.status())) return copy.status();
  SlabKey key{kStagingScope, {}};
  const uint64_t number = ++last_staging_;
  std::memcpy(key.block.data(), &number, sizeof(number));
  FQ_ASSIGN_OR_RETURN(Reservation staging,
                      tiers_->Reserve(Tier::kDevice, key, host_pin.tag(), host_pin.primary().size(),
                                      host_pin.refinement().size(), wait_until));
  return DeviceRoom{std::move(staging), /*publish=*/false};
}

absl::Status PagePath::LoadToDevice(const CallContext& context, const SlabSpace& space,
                                    const LeasedBlocks& blocks, const CallerPages& target,
                                    std::vector<BlockOutcome>& outcomes) {
  FQ_RETURN_IF_ERROR(context.Check());
  FQ_RETURN_IF_ERROR(CheckDevice());
  FQ_RETURN_IF_ERROR(AwaitEngine(context, target.device->event()));
  const CallerRows rows(target, space.shape());
  DeviceCall work = CallOf(DeviceWork::kDecode, context, space, target, rows);
  const MonotonicTime wait_until = WaitUntil(context);
  std::vector<size_t> indices;     // of the lease, per block of `work`
  std::vector<DeviceRoom> copies;  // per block of `work`; empty when the slab is there already
  for (size_t i = 0; i < blocks.block_count; ++i) {
    if (IsBelowFloor(blocks, i)) {
      outcomes[i] = BlockOutcome::kBelowFloor;
      continue;
    }
    const Pin& pin = PinAt(blocks, i);
    DeviceBlock block =
        BlockAt(IdOf(pin), static_cast<PageKind>(pin.tag().kind), target.pages.places[i]);
    block.primary = Data(pin.primary());
    block.refinement = Data(pin.refinement());
    DeviceRoom copy;
    if (pin.on_host()) {
      absl::StatusOr<DeviceRoom> room = RoomOnDevice(pin, wait_until);
      if (!room.ok()) {
        metrics_->Add(Metric::kBlocksMissed, {"no_room"}, 1);
        continue;
      }
      copy = *std::move(room);
      block.primary = Data(copy.room.primary());
      block.refinement = Data(copy.room.refinement());
      work.uploads.push_back({work.blocks.size(), block.primary, pin.primary()});
      if (block.refinement != nullptr) {
        work.uploads.push_back({work.blocks.size(), block.refinement, pin.refinement()});
      }
    }
    copies.push_back(std::move(copy));
    indices.push_back(i);
    work.blocks.push_back(block);
  }
  if (indices.empty()) return absl::OkStatus();
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  for (size_t n = 0; n < indices.size(); ++n) {
    const Pin& pin = PinAt(blocks, indices[n]);
    if (work.broken[n] != 0) {
      DropFailed(pin);
      continue;
    }
    outcomes[indices[n]] = BlockOutcome::kOk;
    if (copies[n].publish) std::move(copies[n].room).Publish();
    CountLoaded(space, pin, DeliveredProfile(pin));
    CountBytesLoaded(space, pin);
  }
  return absl::OkStatus();
}

absl::StatusOr<PagePath::HostExtents> PagePath::OnHost(const Pin& pin) {
  HostExtents host;
  if (pin.on_host()) {
    host.primary = pin.primary();
    host.refinement = pin.refinement();
    return host;
  }
  host.copy.resize(CodedBytes(pin));
  const auto copy = absl::MakeSpan(host.copy);
  DeviceCall work;
  work.work = DeviceWork::kRead;
  work.downloads.push_back({copy.first(pin.primary().size()), pin.primary().data()});
  if (!pin.refinement().empty()) {
    work.downloads.push_back({copy.subspan(pin.primary().size()), pin.refinement().data()});
  }
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  host.primary = copy.first(pin.primary().size());
  host.refinement = copy.subspan(pin.primary().size());
  return host;
}

}  // namespace fq
