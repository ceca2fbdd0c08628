#include "tests/testing/host_queue.h"

#include <cstring>
#include <utility>

#include "kernels/base/status_macros.h"
#include "kernels/codec/word_sum.h"
#include "kernels/slab_header.h"
#include "tests/testing/guarded_memory.h"

namespace fq {
namespace {

constexpr int kOverwritten = 0xA5;

// One side of a page.
struct SideOf {
  const SlabShape& shape;
  const DeviceRows& rows;
  const DeviceBlock& block;

  uint64_t RowBytes() const { return uint64_t(ElementBytes(shape.dtype)) * shape.head_size; }

  // Row `token` of the block, counted from the begin of its first chunk.
  std::byte* Row(std::byte* layer, int head, int token) const {
    const int chunk = token / rows.tokens_per_chunk;
    const int64_t element =
        token % rows.tokens_per_chunk * rows.token_stride + head * rows.head_stride;
    return HostAddress(
        layer + kChunkUnitBytes * block.chunks[chunk] + ElementBytes(shape.dtype) * element,
        RowBytes());
  }
  int last_token() const { return block.first_token + block.id.tokens - 1; }

  template <typename PageRows>
  PageRows Make(std::byte* layer, int head) const {
    PageRows out;
    out.tokens_per_chunk = rows.tokens_per_chunk;
    out.first_token = block.first_token;
    out.token_stride = rows.token_stride;
    for (int i = 0; i <= last_token() / rows.tokens_per_chunk; ++i) {
      out.chunks[i] = Row(layer, head, i * rows.tokens_per_chunk);
    }
    Row(layer, head, last_token());  // ends the process when it is not there
    return out;
  }

  void Overwrite(std::byte* layer, int head) const {
    for (int token = block.first_token; token <= last_token(); ++token) {
      std::memset(Row(layer, head, token), kOverwritten, RowBytes());
    }
  }
};

template <typename Page>
std::vector<Page> PagesOf(const SideOf& side) {
  std::vector<Page> pages(side.shape.pages());
  for (size_t i = 0; i < pages.size(); ++i) {
    const int layer = static_cast<int>(i) / side.shape.heads();
    const int head = static_cast<int>(i) % side.shape.heads();
    pages[i].k = side.Make<decltype(Page::k)>(side.rows.layers[layer].k, head);
    pages[i].v = side.Make<decltype(Page::v)>(side.rows.layers[layer].v, head);
  }
  return pages;
}

// An extent of the block; empty for null.
absl::StatusOr<absl::Span<std::byte>> ExtentOf(const SlabCodec& slabs, PageKind kind,
                                               const DeviceBlock& block, std::byte* device) {
  if (device == nullptr) return absl::Span<std::byte>();
  FQ_ASSIGN_OR_RETURN(const size_t bytes, slabs.ExtentBytes(kind, block.id.index == 0));
  return absl::MakeSpan(HostAddress(device, bytes), bytes);
}

absl::Status EncodeBlock(const SlabCodec& slabs, const DeviceRows& rows, const DeviceBlock& block) {
  FQ_ASSIGN_OR_RETURN(const auto primary, ExtentOf(slabs, block.kind, block, block.primary));
  FQ_ASSIGN_OR_RETURN(const auto refinement,
                      ExtentOf(slabs, PageKind::kRefinement, block, block.refinement));
  return slabs.Encode(block.kind, block.id, PagesOf<SourcePage>({slabs.shape(), rows, block}),
                      primary, refinement);
}

absl::Status DecodeBlock(const SlabCodec& slabs, const DeviceRows& rows, const DeviceBlock& block,
                         uint8_t* broken) {
  FQ_ASSIGN_OR_RETURN(const auto primary, ExtentOf(slabs, block.kind, block, block.primary));
  FQ_ASSIGN_OR_RETURN(const auto refinement,
                      ExtentOf(slabs, PageKind::kRefinement, block, block.refinement));
  const SideOf side{slabs.shape(), rows, block};
  const bool other_kind = static_cast<PageKind>(primary[offsetof(SlabHeader, kind)]) != block.kind;
  const absl::Status status =
      other_kind ? absl::DataLossError("kind")
                 : slabs.Decode(block.id, primary, refinement, PagesOf<TargetPage>(side));
  *broken = absl::IsDataLoss(status) ? 1 : 0;
  if (*broken == 0) return status;
  for (int i = 0; i < slabs.shape().pages(); ++i) {
    side.Overwrite(rows.layers[i / slabs.shape().heads()].k, i % slabs.shape().heads());
    side.Overwrite(rows.layers[i / slabs.shape().heads()].v, i % slabs.shape().heads());
  }
  return absl::OkStatus();
}

const SlabCodec& SlabsOf(const DeviceCodec& codec) {
  return static_cast<const HostCodec&>(codec).slabs();
}

}  // namespace

void HostFaults::FailNextFinish(absl::Status status) {
  const std::lock_guard lock(mutex_);
  next_finish_ = std::move(status);
}

void HostFaults::Lose() {
  const std::lock_guard lock(mutex_);
  lost_ = true;
}

absl::Status HostFaults::Check() const {
  const std::lock_guard lock(mutex_);
  return lost_ ? absl::InternalError("device: lost") : absl::OkStatus();
}

absl::Status HostFaults::TakeFinish() {
  FQ_RETURN_IF_ERROR(Check());
  const std::lock_guard lock(mutex_);
  return std::exchange(next_finish_, absl::OkStatus());
}

absl::Status HostQueue::Queue(Work& to, std::function<absl::Status()> work) {
  FQ_RETURN_IF_ERROR(faults_->Check());
  to.push_back(std::move(work));
  return absl::OkStatus();
}

absl::Status HostQueue::Encode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                               absl::Span<const DeviceBlock> blocks) {
  return Queue(queued_, [&codec, rows, blocks] {
    for (const DeviceBlock& block : blocks) {
      FQ_RETURN_IF_ERROR(EncodeBlock(SlabsOf(codec), rows[block.rows], block));
    }
    return absl::OkStatus();
  });
}

absl::Status HostQueue::Decode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                               absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) {
  return Queue(queued_, [&codec, rows, blocks, broken] {
    for (size_t i = 0; i < blocks.size(); ++i) {
      FQ_RETURN_IF_ERROR(DecodeBlock(SlabsOf(codec), rows[blocks[i].rows], blocks[i], &broken[i]));
    }
    return absl::OkStatus();
  });
}

absl::Status HostQueue::Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) {
  return Queue(queued_, [regions, sums] {
    for (size_t i = 0; i < regions.size(); ++i) {
      const std::byte* const data = HostAddress(regions[i].data, regions[i].bytes);
      sums[i] = 0;
      for (uint64_t word = 0; word < regions[i].bytes / sizeof(uint64_t); ++word) {
        uint64_t value;
        std::memcpy(&value, data + word * sizeof(value), sizeof(value));
        sums[i] += WordSumTerm(word, value);
      }
    }
    return absl::OkStatus();
  });
}

absl::Status HostQueue::CopyToHost(absl::Span<std::byte> host, const std::byte* device) {
  return Queue(queued_, [host, device] {
    std::memcpy(host.data(), HostAddress(device, host.size()), host.size());
    return absl::OkStatus();
  });
}

absl::Status HostQueue::CopyToDevice(std::byte* device, absl::Span<const std::byte> host) {
  return Queue(uploads_, [host, device] {
    std::memcpy(HostAddress(device, host.size()), host.data(), host.size());
    return absl::OkStatus();
  });
}

absl::Status HostQueue::Fetch(absl::Span<const DeviceFetch> parts) {
  return Queue(queued_, [parts] {
    for (const DeviceFetch& part : parts) {
      for (uint64_t row = 0; row < part.rows; ++row) {
        std::memcpy(part.host + row * part.row_bytes,
                    HostAddress(part.device + row * part.stride_bytes, part.row_bytes),
                    part.row_bytes);
      }
    }
    return absl::OkStatus();
  });
}

absl::Status HostQueue::Finish() {
  const Work uploads = std::exchange(uploads_, {}), work = std::exchange(queued_, {});
  FQ_RETURN_IF_ERROR(faults_->TakeFinish());
  for (const auto& one : uploads) FQ_RETURN_IF_ERROR(one());
  for (const auto& one : work) FQ_RETURN_IF_ERROR(one());
  return faults_->Check();
}

}  // namespace fq
