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

// A block of a store whose error will be measured: copies of some of its pages, coded and as the
// engine has them. Stays where it is while the GPU fills it.
class SampledBlock {
 public:
  SampledBlock(const SlabSpace& space, Profile profile, const BlockId& id, std::vector<int> pages)
      : space_(space), profile_(profile), id_(id), pages_(std::move(pages)) {}

  // Bytes between the pages stay undefined; nobody reads them.
  void AddExtent(PageKind kind, size_t block, absl::Span<const std::byte> extent,
                 DeviceCall& call) {
    auto& copy = kind == PageKind::kRefinement ? refinement_ : primary_;
    copy = {std::unique_ptr<std::byte[]>(new std::byte[extent.size()]), extent.size()};
    if (extent.empty()) return;
    for (int page : pages_) {
      const auto part = space_.codec->PageInExtent(kind, id_.index == 0, page);
      if (!part.ok()) continue;  // not possible for what is just encoded
      AddSample(block, copy.data.get() + part->offset, extent.data() + part->offset,
                {part->bytes, 1, 0}, call);
    }
  }

  void AddRows(const CallerPages& caller, const BlockPlace& place, size_t block, DeviceCall& call) {
    const PageLayout& layout = caller.pages.layout;
    const SlabShape& shape = space_.shape();
    const size_t side_bytes = kBlockTokens * RowBytes();
    rows_.resize(2 * side_bytes * pages_.size());
    std::byte* to = rows_.data();
    for (int page : pages_) {
      const std::byte* head = caller.device->layers()[static_cast<size_t>(page / shape.heads())] +
                              static_cast<uint64_t>(page % shape.heads()) * layout.head_stride;
      sources_.push_back({DenseRows(to), DenseRows(to + side_bytes)});
      for (uint64_t offset : {layout.k_offset, layout.v_offset}) {
        AddSide(layout, place, head + offset, std::exchange(to, to + side_bytes), block, call);
      }
    }
  }

  void Measure(QualityWatch& quality) const {
    quality.MeasureEncoded(space_, profile_, {id_, primary_.span(), refinement_.span()}, pages_,
                           sources_);
  }

 private:
  // Memory as the system gives it: what is never written costs nothing.
  struct HostBuffer {
    std::unique_ptr<std::byte[]> data;
    size_t bytes = 0;
    absl::Span<const std::byte> span() const { return {data.get(), bytes}; }
  };
  struct RowsOfPart {
    size_t row_bytes;
    uint32_t rows;
    uint64_t stride_bytes;
  };

  size_t RowBytes() const {
    return static_cast<size_t>(ElementBytes(space_.shape().dtype)) * space_.shape().head_size;
  }

  static void AddSample(size_t block, std::byte* to, const std::byte* from, const RowsOfPart& rows,
                        DeviceCall& call) {
    call.samples.push_back(
        {block, {to, from, static_cast<uint32_t>(rows.row_bytes), rows.rows, rows.stride_bytes}});
  }

  // K or V of a head, chunk by chunk.
  void AddSide(const PageLayout& layout, const BlockPlace& place, const std::byte* from,
               std::byte* to, size_t block, DeviceCall& call) const {
    const uint32_t rows = std::min<uint32_t>(layout.tokens_per_chunk, kBlockTokens);
    from += place.first_token * layout.k_token_stride;
    for (uint64_t offset : place.chunk_offsets) {
      AddSample(block, to, from + offset, {RowBytes(), rows, layout.k_token_stride}, call);
      to += rows * RowBytes();
    }
  }

  SourceRows DenseRows(const std::byte* begin) const {
    SourceRows rows;
    rows.chunks[0] = begin;
    rows.tokens_per_chunk = kBlockTokens;
    rows.token_stride = space_.shape().head_size;
    return rows;
  }

  const SlabSpace space_;
  const Profile profile_;
  const BlockId id_;
  const std::vector<int> pages_;
  HostBuffer primary_, refinement_;
  std::vector<std::byte> rows_;  // [page][K|V][64][head_size]
  std::vector<SourcePage> sources_;
};

MonotonicTime PagePath::WaitUntil(const CallContext& context) {
  constexpr Milliseconds kMostWait{50};
  return std::min(context.deadline, SteadyNow() + kMostWait);
}

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
  std::vector<std::unique_ptr<SampledBlock>> samples;
  const CallerRows rows(call.source, space.shape());
  DeviceCall work = CallOf(DeviceWork::kEncode, context, space, call.source, rows);
  work.blocks.reserve(call.keys.size());
  reserved.reserve(call.keys.size());
  for (size_t i = 0; i < call.keys.size(); ++i) {
    if (!call.damaged.empty() && call.damaged[i]) {
      outcomes[i] = BlockOutcome::kMiss;
      continue;
    }
    Reserved one{i, {}, {}};
    FQ_ASSIGN_OR_RETURN(one.plan, PlanOf(space, call, i));
    FQ_ASSIGN_OR_RETURN(outcomes[i], Reserve(Tier::kDevice, space, call.profile, one.plan, one.room,
                                             pins[i], wait_until));
    if (outcomes[i] != BlockOutcome::kOk) continue;
    DeviceBlock block = BlockAt(one.plan.id, one.plan.kind, call.source.pages.places[i]);
    block.primary = Data(one.room.primary());
    block.refinement = Data(one.room.refinement());
    std::vector<int> pages = quality_->PagesToMeasure(space, call.profile, call.keys[i]);
    if (!pages.empty()) {
      auto sample =
          std::make_unique<SampledBlock>(space, call.profile, one.plan.id, std::move(pages));
      const size_t at = work.blocks.size();
      sample->AddExtent(PageKind::kBase, at, one.room.primary(), work);
      sample->AddExtent(PageKind::kRefinement, at, one.room.refinement(), work);
      sample->AddRows(call.source, call.source.pages.places[i], at, work);
      samples.push_back(std::move(sample));
    }
    work.blocks.push_back(block);
    reserved.push_back(std::move(one));
  }
  if (reserved.empty()) return absl::OkStatus();
  const MonotonicTime begin = SteadyNow();
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  FQ_RETURN_IF_ERROR(context.Check());  // given up, the caller may have used its pages again
  uint64_t coded_bytes = 0;
  for (Reserved& one : reserved) {
    pins[one.index] = std::move(one.room).Publish();
    coded_bytes += CodedBytes(pins[one.index]);
    CountStored(space, call, one.plan);
  }
  encode_rate_.Add(coded_bytes, SteadyNow() - begin);
  MeasureLater(std::move(samples));
  return absl::OkStatus();
}

// On a worker, not in the caller's time. While too many calls wait for one, nothing is measured.
void PagePath::MeasureLater(std::vector<std::unique_ptr<SampledBlock>> samples) {
  if (samples.empty()) return;
  auto shared =
      std::make_shared<const std::vector<std::unique_ptr<SampledBlock>>>(std::move(samples));
  workers_
      ->Submit([quality = quality_, shared] {
        for (const auto& sample : *shared) sample->Measure(*quality);
      })
      .IgnoreError();
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

absl::StatusOr<PagePath::OnDevice> PagePath::BringToDevice(const Pin& pin, MonotonicTime wait_until,
                                                           DeviceCall& work) {
  OnDevice there{Data(pin.primary()), Data(pin.refinement()), {}};
  if (!pin.on_host()) return there;
  absl::StatusOr<DeviceRoom> room = RoomOnDevice(pin, wait_until);
  if (!room.ok()) {
    metrics_->Add(Metric::kBlocksMissed, {"no_room"}, 1);
    return room.status();
  }
  there.copy = *std::move(room);
  there.primary = Data(there.copy.room.primary());
  there.refinement = Data(there.copy.room.refinement());
  work.uploads.push_back({work.blocks.size(), there.primary, pin.primary()});
  if (there.refinement != nullptr) {
    work.uploads.push_back({work.blocks.size(), there.refinement, pin.refinement()});
  }
  return there;
}

absl::Status PagePath::LoadToDevice(const CallContext& context, const SlabSpace& space,
                                    const LeasedBlocks& blocks, const CallerPages& target,
                                    std::vector<BlockOutcome>& outcomes) {
  FQ_RETURN_IF_ERROR(context.Check());
  FQ_RETURN_IF_ERROR(CheckDevice());
  FQ_RETURN_IF_ERROR(AwaitEngine(context, target.device->event()));
  const CallerRows rows(target, space.shape());
  DeviceCall work = CallOf(DeviceWork::kDecode, context, space, target, rows);
  work.blocks.reserve(blocks.block_count);
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
    absl::StatusOr<OnDevice> there = BringToDevice(pin, wait_until, work);
    if (!there.ok()) continue;
    block.primary = there->primary;
    block.refinement = there->refinement;
    copies.push_back(std::move(there->copy));
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

// All rows of a block lie in its layer's part of the scratch: [K|V][64][heads][head_size].
absl::StatusOr<std::vector<bool>> PagePath::CheckOnDevice(const CallContext& context,
                                                          const SlabSpace& space,
                                                          absl::Span<const IncomingBlock> blocks,
                                                          const DeviceSegment& scratch) {
  const SlabShape& shape = space.shape();
  const auto element = static_cast<uint64_t>(ElementBytes(shape.dtype));
  CallerPages pages;
  pages.device = &scratch;
  PageLayout& layout = pages.pages.layout;
  layout.tokens_per_chunk = kBlockTokens;
  layout.head_stride = shape.head_size * element;
  layout.k_token_stride = static_cast<uint64_t>(shape.heads()) * layout.head_stride;
  layout.v_offset = kBlockTokens * layout.k_token_stride;
  const CallerRows rows(pages, shape);
  DeviceCall work = CallOf(DeviceWork::kDecode, context, space, pages, rows);
  work.session = &scratch;
  std::vector<size_t> indices;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].damaged) continue;
    DeviceBlock block = BlockAt(blocks[i].id, blocks[i].kind, {{0}, 0});
    block.primary = Data(blocks[i].room.primary());
    block.refinement = Data(blocks[i].room.refinement());
    work.blocks.push_back(block);
    indices.push_back(i);
  }
  std::vector<bool> broken(blocks.size(), true);
  if (indices.empty()) return broken;
  FQ_RETURN_IF_ERROR(RunOnDevice(work));
  for (size_t n = 0; n < indices.size(); ++n) broken[indices[n]] = work.broken[n] != 0;
  return broken;
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
