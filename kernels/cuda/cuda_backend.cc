#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/codec/page_layout.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/cuda/host_staging.h"
#include "kernels/page_bytes.h"

namespace fq {
namespace {

constexpr size_t kBatchPages = 512;  // 32 MiB of FP16 rows at d = 128

// What encode and decode tasks have in common.
struct TaskPage {
  PageKind kind;
  int layer, head, tokens;
  bool sink;
  const std::byte* primary;
  const std::byte* refinement;
};
TaskPage PageOf(const EncodeTask& task) {
  return {task.kind, task.layer, task.head, task.tokens, task.sink, task.primary, task.refinement};
}
TaskPage PageOf(const DecodeTask& task) {
  return {task.kind, task.layer, task.head, task.tokens, task.sink, task.primary, task.refinement};
}

// Where a page's bytes lie in the caller's memory and in the staging buffers.
struct StagedPage {
  std::byte* caller;
  size_t offset, bytes;
};

// The layout of a batch of pages of one kind: jobs, where their rows lie and block numbers, then
// rows as exact pages, then the pages themselves.
class Batch {
 public:
  explicit Batch(const Backend::Context& context) : context_(context) {}

  template <typename Task>
  void Build(absl::Span<const Task> tasks) {
    const size_t count = tasks.size();
    jobs_.assign(count, PageJob());
    pages_.clear();
    sets_offset_ = Align(sizeof(PageJob) * count);
    blocks_offset_ = sets_offset_ + Align(sizeof(PagedRows));
    rows_offset_ = blocks_offset_ + Align(sizeof(int32_t) * count);
    pages_offset_ = end_ = rows_offset_ + count * RowBytes();
    for (size_t i = 0; i < count; ++i) AddPage(PageOf(tasks[i]), i);
  }

  // Bytes of the rows of one page; they lie like an exact page.
  size_t RowBytes() const { return ExactPageBytes(context_.head_size, Element()); }
  size_t rows_offset() const { return rows_offset_; }
  size_t pages_offset() const { return pages_offset_; }
  size_t end() const { return end_; }
  const std::vector<StagedPage>& pages() const { return pages_; }

  // Puts jobs, where their rows lie and block numbers into the staging buffer.
  void WriteJobs(const HostStaging& staging) {
    auto* blocks = reinterpret_cast<int32_t*>(staging.host() + blocks_offset_);
    for (size_t i = 0; i < jobs_.size(); ++i) {
      PageJob& job = jobs_[i];
      blocks[i] = static_cast<int32_t>(i);
      job.blocks = reinterpret_cast<const int32_t*>(staging.device() + blocks_offset_) + i;
      job.primary = staging.device() + reinterpret_cast<size_t>(job.primary);
      if (job.refinement != nullptr) {
        job.refinement = staging.device() + reinterpret_cast<size_t>(job.refinement);
      }
    }
    std::memcpy(staging.host(), jobs_.data(), sizeof(PageJob) * jobs_.size());
    const PagedRows rows = StagedRows(staging);
    std::memcpy(staging.host() + sets_offset_, &rows, sizeof(rows));
  }

  PageJobs DeviceJobs(const HostStaging& staging) const {
    PageJobs jobs;
    jobs.jobs = reinterpret_cast<PageJob*>(staging.device());
    jobs.count = static_cast<int>(jobs_.size());
    jobs.checked = false;
    return jobs;
  }

  RowSets DeviceRows(const HostStaging& staging) const {
    return {reinterpret_cast<const PagedRows*>(staging.device() + sets_offset_), context_.dtype};
  }

 private:
  static size_t Align(size_t bytes) { return (bytes + 63) / 64 * 64; }
  int Element() const { return ElementBytes(context_.dtype); }

  PagedRows StagedRows(const HostStaging& staging) const {
    PagedRows rows;
    rows.k = staging.device() + rows_offset_;
    rows.v = staging.device() + rows_offset_ + RowBytes() / 2;
    rows.block_stride = static_cast<int64_t>(RowBytes() / Element());
    rows.token_stride = context_.head_size;
    return rows;
  }

  // Offsets stand in for pointers until the staging buffers are large enough.
  void AddPage(const TaskPage& page, size_t index) {
    PageJob& job = jobs_[index];
    job.tokens = static_cast<uint8_t>(page.tokens);
    job.sink = page.sink ? 1 : 0;
    const CodecProfile* profile = nullptr;
    if (page.kind == PageKind::kBase) {
      profile = &context_.codec_set->profile(page.layer, page.head);
      job.coder = page.layer * context_.codec_set->kv_heads() + page.head;
    }
    job.primary = Stage(page.primary, page.kind, page.sink, profile);
    if (page.refinement == nullptr) return;
    job.refinement = Stage(page.refinement, PageKind::kRefinement, page.sink, profile);
  }

  std::byte* Stage(const std::byte* caller, PageKind kind, bool sink, const CodecProfile* profile) {
    const size_t bytes = PageBytes({kind, context_.dtype, context_.head_size, sink}, profile);
    pages_.push_back({const_cast<std::byte*>(caller), end_, bytes});
    end_ += Align(bytes);
    return reinterpret_cast<std::byte*>(pages_.back().offset);
  }

  const Backend::Context& context_;
  std::vector<PageJob> jobs_;
  std::vector<StagedPage> pages_;
  size_t sets_offset_ = 0, blocks_offset_ = 0, rows_offset_ = 0, pages_offset_ = 0, end_ = 0;
};

// Tasks of one kind, in their order.
template <typename Task>
std::vector<Task> TasksOf(PageKind kind, absl::Span<const Task> tasks) {
  std::vector<Task> chosen;
  for (const Task& task : tasks) {
    if (task.kind == kind) chosen.push_back(task);
  }
  return chosen;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(cudaStream_t stream, bool with_lists) : stream_(stream), with_lists_(with_lists) {}
  ~CudaBackend() override { cudaStreamDestroy(stream_); }

  const char* name() const override { return "cuda"; }

  absl::Status Encode(const Context& context, absl::Span<const EncodeTask> tasks) const override {
    return ForEachBatch(tasks, [&](PageKind kind, absl::Span<const EncodeTask> batch) {
      return EncodeBatch(context, kind, batch);
    });
  }

  absl::Status Decode(const Context& context, absl::Span<const DecodeTask> tasks) const override {
    return ForEachBatch(tasks, [&](PageKind kind, absl::Span<const DecodeTask> batch) {
      return DecodeBatch(context, kind, batch);
    });
  }

  absl::Status Attend(const Context& context, absl::Span<const AttendTask> tasks) const override {
    return CpuBackend()->Attend(context, tasks);
  }

 private:
  template <typename Task, typename Run>
  absl::Status ForEachBatch(absl::Span<const Task> tasks, const Run& run) const {
    const std::lock_guard lock(mutex_);
    for (PageKind kind : {PageKind::kExact, PageKind::kBase, PageKind::kUniversal}) {
      const std::vector<Task> chosen = TasksOf(kind, tasks);
      for (size_t i = 0; i < chosen.size(); i += kBatchPages) {
        const size_t count = std::min(kBatchPages, chosen.size() - i);
        FQ_RETURN_IF_ERROR(run(kind, absl::MakeConstSpan(chosen).subspan(i, count)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status EncodeBatch(const Context& context, PageKind kind,
                           absl::Span<const EncodeTask> tasks) const {
    Batch batch(context);
    batch.Build(tasks);
    FQ_RETURN_IF_ERROR(staging_.Reserve(batch.end()));
    batch.WriteJobs(staging_);
    FQ_RETURN_IF_ERROR(GatherRows(context, batch, tasks));
    FQ_RETURN_IF_ERROR(staging_.ToDevice(0, batch.pages_offset(), stream_));
    FQ_ASSIGN_OR_RETURN(const CoderTables* coders, CodersOf(context, kind));
    FQ_RETURN_IF_ERROR(EncodePages(kind, context.head_size, coders, batch.DeviceJobs(staging_),
                                   batch.DeviceRows(staging_), stream_));
    FQ_RETURN_IF_ERROR(staging_.ToHost(batch.pages_offset(), batch.end(), stream_));
    FQ_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
    for (const StagedPage& page : batch.pages()) {
      std::memcpy(page.caller, staging_.host() + page.offset, page.bytes);
    }
    return absl::OkStatus();
  }

  absl::Status DecodeBatch(const Context& context, PageKind kind,
                           absl::Span<const DecodeTask> tasks) const {
    Batch batch(context);
    batch.Build(tasks);
    FQ_RETURN_IF_ERROR(staging_.Reserve(batch.end()));
    batch.WriteJobs(staging_);
    for (const StagedPage& page : batch.pages()) {
      std::memcpy(staging_.host() + page.offset, page.caller, page.bytes);
    }
    FQ_RETURN_IF_ERROR(staging_.ToDevice(0, batch.rows_offset(), stream_));
    FQ_RETURN_IF_ERROR(staging_.ToDevice(batch.pages_offset(), batch.end(), stream_));
    FQ_ASSIGN_OR_RETURN(const CoderTables* coders, CodersOf(context, kind));
    FQ_RETURN_IF_ERROR(DecodePages({kind, context.head_size, Domain::kRows}, coders,
                                   batch.DeviceJobs(staging_), batch.DeviceRows(staging_),
                                   stream_));
    FQ_RETURN_IF_ERROR(staging_.ToHost(batch.rows_offset(), batch.pages_offset(), stream_));
    FQ_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
    return ScatterRows(context, batch, tasks);
  }

  // Rows lie in the staging buffer like exact pages, so the CPU's exact codec copies them.
  absl::Status GatherRows(const Context& context, const Batch& batch,
                          absl::Span<const EncodeTask> tasks) const {
    std::vector<EncodeTask> copies(tasks.begin(), tasks.end());
    for (size_t i = 0; i < copies.size(); ++i) {
      copies[i].kind = PageKind::kExact;
      copies[i].primary = staging_.host() + batch.rows_offset() + i * batch.RowBytes();
    }
    return CpuBackend()->Encode(context, copies);
  }

  absl::Status ScatterRows(const Context& context, const Batch& batch,
                           absl::Span<const DecodeTask> tasks) const {
    std::vector<DecodeTask> copies(tasks.begin(), tasks.end());
    for (size_t i = 0; i < copies.size(); ++i) {
      copies[i].kind = PageKind::kExact;
      copies[i].primary = staging_.host() + batch.rows_offset() + i * batch.RowBytes();
    }
    return CpuBackend()->Decode(context, copies);
  }

  // Null for kinds that need none.
  absl::StatusOr<const CoderTables*> CodersOf(const Context& context, PageKind kind) const {
    if (kind != PageKind::kBase) return static_cast<const CoderTables*>(nullptr);
    auto found = coders_.find(context.codec_set->id());
    if (found == coders_.end()) {
      FQ_ASSIGN_OR_RETURN(CoderTables tables, CoderTables::Create(*context.codec_set, with_lists_));
      found = coders_.emplace(context.codec_set->id(), std::move(tables)).first;
    }
    return &found->second;
  }

  mutable std::mutex mutex_;  // guards what follows
  mutable HostStaging staging_;
  mutable std::map<CodecSetId, CoderTables> coders_;
  const cudaStream_t stream_;
  const bool with_lists_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Backend>> CreateCudaBackend(bool with_lists) {
  cudaStream_t stream;
  FQ_RETURN_IF_CUDA_ERROR(cudaStreamCreate(&stream));
  return std::make_unique<const CudaBackend>(stream, with_lists);
}

}  // namespace fq
