// An attention call on a GPU over made-up pages, and what it should give in double precision. For
// tests and benchmarks; not thread-safe.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/attend_compile.h"
#include "kernels/cuda/attend_heads.h"
#include "kernels/cuda/attend_launch.h"
#include "kernels/cuda/attend_rope.h"
#include "kernels/cuda/tables_device.h"
#include "tests/testing/reference_codec.h"

namespace fq {

// A codec set of one layer with these profiles, one for each kv head.
std::shared_ptr<const CodecSet> MakeCodecSet(int head_size,
                                             const std::vector<CodecProfile>& profiles);

// A profile from classes of 16-channel pairs of groups, written as digits: "84222110".
CodecProfile ProfileOf(const std::string& k, const std::string& v, const std::string& k_refinement,
                       const std::string& v_refinement);

class AttendCase {
 public:
  struct Page {
    PageKind kind = PageKind::kBase;
    bool refined = false, sink = false;
    int tokens = kBlockTokens;
  };
  using Sequence = std::vector<Page>;

  struct Options {
    std::shared_ptr<const CodecSet> set;
    DType dtype = DType::kF16;
    int queries_per_kv_head = 8;
    int queries = 1;       // of each sequence
    int blocks = 0;        // 0: one for each multiprocessor
    float q_scale = 1.0f;  // root mean square of the elements of q
    uint64_t seed = 1;
    uint64_t placement = 7;                   // decides the order of the pages in memory
    bool backward = false;                    // the last sequence is planned first
    int replicated_tables = kMostReplicated;  // fewer: as on GPUs with less shared memory
    std::string cache_folder;                 // of compiled kernels
  };

  // Random pages for each sequence, in a random order in memory.
  static absl::StatusOr<std::unique_ptr<AttendCase>> Create(const Options& options,
                                                            std::vector<Sequence> sequences);
  ~AttendCase();

  // One call on a poisoned output: bits of out [rows][d] and lse [rows].
  struct Result {
    std::vector<uint16_t> out;
    std::vector<float> lse;
    std::vector<std::byte> queries;  // of each task, as the kernels read them (AttendQueryLayout)
  };
  absl::StatusOr<Result> Run();

  // The same call behind RoPE: q() are the rows before it, and these the rest of its inputs and
  // what it leaves. Caches [blocks][block_tokens][kv_heads][d].
  struct Rope {
    std::vector<uint16_t> k, v, cos_sin;    // [tokens][kv_heads][d], [positions][d]
    std::vector<int64_t> positions, slots;  // [tokens]
    int block_tokens = 16;
    std::vector<uint16_t> key_cache, value_cache, rotated_q;
  };
  absl::StatusOr<Result> RunBehindRope(Rope* rope);

  int rows() const;
  // Row of a query head of a sequence.
  int RowOf(int sequence, int query, int kv_head, int q_head) const;
  // Elements of q, [rows][d]; at first queries as the codec set expects them: what a component of
  // the coded domain meets goes with the component's weight.
  std::vector<uint16_t>& q() { return q_; }
  // Makes q meet these components.
  void SetQuery(int row, const std::vector<double>& components);
  // K and V rows [tokens][d] of a head of a sequence, as they decode; of K also the coded domain:
  // base, and what the refinement adds to it.
  struct Rows {
    std::vector<double> k, v, base, refinement;
    std::vector<char> coded;  // [tokens] 0 = exact or of a sink record
  };
  Rows DecodedRows(int sequence, int kv_head) const;
  // Of q itself.
  AttendedRow Expected(const Rows& rows, int row) const;
  // Of q as the kernels round it in the coded domain: to FP16, the first 16 components of base to
  // two of them.
  AttendedRow ExpectedOfRounded(const Rows& rows, int row, const Result& result) const;
  float ElementValue(uint16_t bits) const;
  float scale() const;
  bool bf16() const { return options_.dtype == DType::kBF16; }

 private:
  struct Slab {
    std::vector<std::byte> primary, refinement;
  };
  AttendCase() = default;
  void DecodePage(const Page& page, const Slab& slab, int kv_head, size_t token, Rows* rows) const;
  std::vector<double> RoundedScores(const Rows& rows, int row, const Result& result) const;
  void FillSlabs();
  void FillQueries();
  int HeadOf(int row) const;
  Slab RandomSlab(const Page& page, uint64_t seed) const;
  absl::Status Upload();
  absl::Status Plan();
  absl::Status LaunchRopeOf(const DeviceBuffer (&inputs)[7], const Rope& rope);
  absl::StatusOr<Result> Attend(int steps);

  Options options_;
  std::vector<Sequence> sequences_;
  std::vector<std::vector<Slab>> slabs_;  // [sequence][page]
  std::vector<uint16_t> q_;
  std::vector<AttendTaskInfo> tasks_;
  std::unique_ptr<TablesDevice> tables_;
  std::unique_ptr<const AttendKernel> kernel_;
  std::unique_ptr<AttendWorkspace> workspace_;
  DeviceBuffer pool_, pages_, refinements_, q_device_, out_, lse_;
  cudaStream_t stream_ = nullptr;
};

// The runs of a sequence whose pages are entries `table_begin` and on of the page table.
std::vector<AttendRun> RunsOf(const AttendCase::Sequence& sequence, int table_begin);

}  // namespace fq
