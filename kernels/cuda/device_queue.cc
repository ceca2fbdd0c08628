#include "kernels/cuda/device_queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/cuda/region_sums.h"
#include "kernels/memory/pinned_space.h"

namespace fq {
namespace {

constexpr size_t kMinStaging = size_t{1} << 20;
constexpr size_t kMinJobs = 1 << 12, kMaxJobs = 1 << 18;  // of a launch; 256 KiB and 16 MiB
constexpr std::chrono::microseconds kSpin{250};           // a block or two of a large model

size_t Align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Groups first by kind, and compact blocks apart from refined ones, which need more of an SM.
int GroupOf(const DeviceBlock& block) {
  return 2 * static_cast<int>(block.kind) + (block.refinement != nullptr ? 1 : 0);
}

std::vector<size_t> InGroups(absl::Span<const DeviceBlock> blocks) {
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return GroupOf(blocks[a]) < GroupOf(blocks[b]); });
  return order;
}

absl::Status CheckKinds(const SlabLayout& layout, absl::Span<const DeviceBlock> blocks) {
  for (const DeviceBlock& block : blocks) {
    FQ_RETURN_IF_ERROR(layout.CheckKind(block.kind));
    if (block.kind == PageKind::kRefinement) {
      return InvalidSlab("page kind of a primary extent", 2, "0, 1 or 3");
    }
    if (block.refinement != nullptr && block.kind != PageKind::kBase) {
      return InvalidSlab("page kind beside a refinement", static_cast<uint8_t>(block.kind),
                         "1 (base)");
    }
  }
  return absl::OkStatus();
}

SlabBlock UploadedBlock(const DeviceBlock& block, int layers, size_t flag) {
  SlabBlock out;
  out.primary = block.primary;
  out.refinement = block.refinement;
  std::copy(block.chunks.begin(), block.chunks.end(), out.chunks);
  out.first_token = block.first_token;
  out.rows = block.rows * layers;
  out.flag = static_cast<int32_t>(flag);
  out.tokens = static_cast<uint8_t>(block.id.tokens);
  out.sink = IsSinkBlock(block.id) ? 1 : 0;
  return out;
}

SlabHead HeadOf(const SlabLayout& layout, PageKind kind, const DeviceBlock& block, size_t flag) {
  SlabHead head;
  head.extent = kind == PageKind::kRefinement ? block.refinement : block.primary;
  head.padding_offset = sizeof(SlabHeader) + sizeof(uint64_t) * layout.shape().pages();
  head.pages_offset = SlabPagesOffset(layout.shape().pages());
  head.flag = static_cast<int64_t>(flag);
  head.header = layout.MakeHeader(kind, block.id);
  return head;
}

// Writes [rows][layers].
void WriteRowSets(absl::Span<const DeviceRows> rows, DType dtype, PagedRows* to) {
  for (const DeviceRows& own : rows) {
    for (const DeviceRows::Layer& layer : own.layers) {
      PagedRows set;
      set.k = layer.k;
      set.v = layer.v;
      set.block_stride = static_cast<int64_t>(kChunkUnitBytes) / ElementBytes(dtype);
      set.token_stride = own.token_stride;
      set.head_stride = own.head_stride;
      set.block_tokens = own.tokens_per_chunk;
      *to++ = set;
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaQueue>> CudaQueue::Create(int ordinal, cudaStream_t stream) {
  std::unique_ptr<CudaQueue> queue(new CudaQueue(ordinal, stream));
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaEventCreateWithFlags(&queue->done_, cudaEventBlockingSync | cudaEventDisableTiming));
  FQ_RETURN_IF_ERROR(queue->staging_.Reserve(kMinStaging));
  FQ_RETURN_IF_ERROR(queue->ReserveJobs(kMinJobs));
  return queue;
}

CudaQueue::~CudaQueue() {
  cudaSetDevice(ordinal_);
  cudaStreamSynchronize(stream_);
  if (upload_stream_ != nullptr) {
    cudaStreamSynchronize(upload_stream_);
    cudaStreamDestroy(upload_stream_);
  }
  if (uploaded_ != nullptr) cudaEventDestroy(uploaded_);
  if (done_ != nullptr) cudaEventDestroy(done_);
  cudaStreamDestroy(stream_);
}

absl::Status CudaQueue::Encode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                               absl::Span<const DeviceBlock> blocks) {
  if (blocks.empty()) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(const Call call, Upload(static_cast<const CudaCodec&>(codec), rows, blocks));
  FQ_RETURN_IF_ERROR(AwaitUploads());
  FQ_RETURN_IF_ERROR(WriteSlabHeads(call.heads, call.head_count, stream_));
  return CodeGroups(call, [&](const Group& group, const PageJobs& jobs) {
    return EncodePages(group.kind, codec.shape().head_size, call.codec->coders(), jobs, call.rows,
                       stream_);
  });
}

absl::Status CudaQueue::Decode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                               absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) {
  if (blocks.empty()) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(const Call call, Upload(static_cast<const CudaCodec&>(codec), rows, blocks));
  results_.push_back({call.broken, broken.data(), broken.size()});
  FQ_RETURN_IF_ERROR(AwaitUploads());
  FQ_RETURN_IF_ERROR(CheckSlabHeads(call.heads, call.head_count, call.broken, stream_));
  return CodeGroups(call, [&](const Group& group, const PageJobs& jobs) {
    return DecodePages({group.kind, codec.shape().head_size, Domain::kRows}, call.codec->coders(),
                       jobs, call.rows, stream_);
  });
}

absl::Status CudaQueue::Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) {
  if (regions.empty()) return absl::OkStatus();
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  FQ_RETURN_IF_ERROR(AwaitUploads());
  const std::vector<SumPiece> pieces = SumPieces(regions);
  const size_t piece_bytes = sizeof(SumPiece) * pieces.size();
  FQ_ASSIGN_OR_RETURN(const size_t begin,
                      Stage(Align(piece_bytes) + Align(sizeof(uint64_t) * pieces.size())));
  std::memcpy(staging_.host() + begin, pieces.data(), piece_bytes);
  FQ_RETURN_IF_ERROR(staging_.ToDevice(begin, begin + piece_bytes, stream_));
  auto* piece_sums = reinterpret_cast<uint64_t*>(staging_.host() + begin + Align(piece_bytes));
  sums_.push_back({piece_sums, regions, sums});
  FQ_RETURN_IF_CUDA_ERROR(
      SumPiecesOnDevice(reinterpret_cast<const SumPiece*>(staging_.device() + begin),
                        static_cast<int>(pieces.size()), piece_sums, stream_));
  return absl::OkStatus();
}

absl::Status CudaQueue::CopyToHost(absl::Span<std::byte> host, const std::byte* device) {
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  FQ_RETURN_IF_ERROR(AwaitUploads());
  return ForEachPinnedPart(host.data(), host.size(), [&](size_t at, size_t bytes) {
    return CudaStatus(
        cudaMemcpyAsync(host.data() + at, device + at, bytes, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync to the host");
  });
}

absl::Status CudaQueue::CopyToDevice(std::byte* device, absl::Span<const std::byte> host) {
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  if (upload_stream_ == nullptr) {
    FQ_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&upload_stream_, cudaStreamNonBlocking));
    FQ_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&uploaded_, cudaEventDisableTiming));
  }
  uploading_ = true;
  return ForEachPinnedPart(host.data(), host.size(), [&](size_t at, size_t bytes) {
    return CudaStatus(cudaMemcpyAsync(device + at, host.data() + at, bytes, cudaMemcpyHostToDevice,
                                      upload_stream_),
                      "cudaMemcpyAsync to the device");
  });
}

// What is queued on stream_ from here on waits for the uploads so far.
absl::Status CudaQueue::AwaitUploads() {
  if (!std::exchange(uploading_, false)) return absl::OkStatus();
  FQ_RETURN_IF_CUDA_ERROR(cudaEventRecord(uploaded_, upload_stream_));
  FQ_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream_, uploaded_, 0));
  return absl::OkStatus();
}

// In the staging buffers: the list, and on the host what comes.
absl::Status CudaQueue::Fetch(absl::Span<const DeviceFetch> parts) {
  if (parts.empty()) return absl::OkStatus();
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  FQ_RETURN_IF_ERROR(AwaitUploads());
  const size_t list_bytes = Align(sizeof(DeviceFetch) * parts.size());
  size_t bytes = list_bytes;
  for (const DeviceFetch& part : parts) bytes += Align(part.bytes());
  FQ_ASSIGN_OR_RETURN(const size_t begin, Stage(bytes));
  auto* list = reinterpret_cast<DeviceFetch*>(staging_.host() + begin);
  std::byte* room = staging_.host() + begin + list_bytes;
  for (const DeviceFetch& part : parts) {
    results_.push_back({room, part.host, part.bytes()});
    *list = part;
    list++->host = std::exchange(room, room + Align(part.bytes()));
  }
  FQ_RETURN_IF_ERROR(staging_.ToDevice(begin, begin + list_bytes, stream_));
  return FetchParts(reinterpret_cast<const DeviceFetch*>(staging_.device() + begin),
                    static_cast<int>(parts.size()), stream_);
}

absl::Status CudaQueue::Finish() {
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  absl::Status status = AwaitUploads();
  status.Update(Drain());
  return status;
}

// Layout of a call in the staging buffers: blocks, heads, rows, flags.
absl::StatusOr<CudaQueue::Call> CudaQueue::Upload(const CudaCodec& codec,
                                                  absl::Span<const DeviceRows> rows,
                                                  absl::Span<const DeviceBlock> blocks) {
  const SlabLayout& layout = codec.layout();
  FQ_RETURN_IF_ERROR(CheckKinds(layout, blocks));
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  const int layers = layout.shape().layers();
  const size_t heads_at = Align(sizeof(SlabBlock) * blocks.size());
  const size_t rows_at = heads_at + Align(2 * sizeof(SlabHead) * blocks.size());
  const size_t flags_at = rows_at + Align(sizeof(PagedRows) * rows.size() * layers);
  const size_t bytes = flags_at + Align(blocks.size());
  FQ_ASSIGN_OR_RETURN(const size_t begin, Stage(bytes));
  std::byte* const host = staging_.host() + begin;
  const std::byte* const device = staging_.device() + begin;

  Call call{&codec, {}, nullptr, nullptr, 0, {}, nullptr};
  auto* out = reinterpret_cast<SlabBlock*>(host);
  auto* heads = reinterpret_cast<SlabHead*>(host + heads_at);
  for (const size_t i : InGroups(blocks)) {
    const DeviceBlock& block = blocks[i];
    const size_t at = static_cast<size_t>(out - reinterpret_cast<SlabBlock*>(host));
    const bool refined = block.refinement != nullptr;
    if (call.groups.empty() || call.groups.back().kind != block.kind ||
        call.groups.back().refined != refined) {
      call.groups.push_back({block.kind, refined, at, at});
    }
    call.groups.back().end = at + 1;
    *out++ = UploadedBlock(block, layers, i);
    heads[call.head_count++] = HeadOf(layout, block.kind, block, i);
    if (refined) heads[call.head_count++] = HeadOf(layout, PageKind::kRefinement, block, i);
  }
  WriteRowSets(rows, layout.shape().dtype, reinterpret_cast<PagedRows*>(host + rows_at));
  std::memset(host + flags_at, 0, blocks.size());
  FQ_RETURN_IF_ERROR(staging_.ToDevice(begin, begin + flags_at, stream_));
  call.blocks = reinterpret_cast<const SlabBlock*>(device);
  call.heads = reinterpret_cast<const SlabHead*>(device + heads_at);
  call.rows = {reinterpret_cast<const PagedRows*>(device + rows_at), layout.shape().dtype};
  call.broken = reinterpret_cast<uint8_t*>(host + flags_at);
  return call;
}

// Calls code(group, jobs) for all pages of all groups: once per group unless it is very large.
template <typename Code>
absl::Status CudaQueue::CodeGroups(const Call& call, const Code& code) {
  const size_t pages = static_cast<size_t>(call.codec->shape().pages());
  const size_t most = std::max<size_t>(1, kMaxJobs / pages);  // blocks of a launch
  for (const Group& group : call.groups) {
    FQ_RETURN_IF_ERROR(ReserveJobs(std::min(most, group.end - group.begin) * pages));
    for (size_t begin = group.begin; begin < group.end; begin += most) {
      const int count = static_cast<int>(std::min(most, group.end - begin));
      FQ_RETURN_IF_ERROR(MakeSlabJobs(call.codec->PagesOf(group.kind), call.blocks + begin, count,
                                      jobs_.as<PageJob>(), stream_));
      PageJobs jobs;
      jobs.jobs = jobs_.as<PageJob>();
      jobs.count = count * static_cast<int>(pages);
      jobs.refined = group.refined;
      jobs.broken = call.broken;
      FQ_RETURN_IF_ERROR(code(group, jobs));
    }
  }
  return absl::OkStatus();
}

// Room in both staging buffers: where it begins.
absl::StatusOr<size_t> CudaQueue::Stage(size_t bytes) {
  if (staged_ + bytes > staging_.bytes()) {
    FQ_RETURN_IF_ERROR(Drain());
    FQ_RETURN_IF_ERROR(staging_.Reserve(std::max(bytes, 2 * staging_.bytes())));
  }
  return std::exchange(staged_, staged_ + bytes);
}

absl::Status CudaQueue::ReserveJobs(size_t count) {
  if (sizeof(PageJob) * count <= jobs_.bytes()) return absl::OkStatus();
  size_t room = kMinJobs;
  while (room < count) room *= 2;
  FQ_RETURN_IF_ERROR(AwaitStream());
  jobs_ = DeviceBuffer();
  FQ_ASSIGN_OR_RETURN(jobs_, DeviceBuffer::Allocate(sizeof(PageJob) * room));
  return absl::OkStatus();
}

// Waits, hands the results on and empties the staging buffers.
absl::Status CudaQueue::Drain() {
  const std::vector<Result> results = std::exchange(results_, {});
  const std::vector<Sums> sums = std::exchange(sums_, {});
  staged_ = 0;
  FQ_RETURN_IF_ERROR(AwaitStream());
  for (const Result& own : results) std::memcpy(own.to, own.from, own.bytes);
  for (const Sums& own : sums) AddPieceSums(own.regions, own.from, own.to);
  return absl::OkStatus();
}

// A short wait should not pay for a thread that sleeps, a long one not for one that spins.
absl::Status CudaQueue::AwaitStream() {
  FQ_RETURN_IF_CUDA_ERROR(cudaEventRecord(done_, stream_));
  const auto until = std::chrono::steady_clock::now() + kSpin;
  cudaError_t state = cudaEventQuery(done_);
  while (state == cudaErrorNotReady && std::chrono::steady_clock::now() < until) {
    state = cudaEventQuery(done_);
  }
  if (state == cudaErrorNotReady) state = cudaEventSynchronize(done_);
  return CudaStatus(state, "cudaEventSynchronize");
}

}  // namespace fq
