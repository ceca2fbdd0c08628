// Speed of the codec on one core: bytes per second are bytes of the FP16 rows, whatever they are
// coded to. With codec_sets/smollm2-135m-instruct.fqcs when it is there, else with a synthetic
// codec set of 2.1 bits a value.

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/backend.h"
#include "kernels/codec/checksum.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/page_layout.h"
#include "kernels/page_bytes.h"
#include "kernels/page_error.h"
#include "tests/bench/q4_0.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

enum class Codec { kExact, kCompact, kNearLossless, kUniversal };

std::shared_ptr<const CodecSet> LoadCodecSet(int head_size) {
  const std::string path = FQ_SOURCE_DIR "/codec_sets/smollm2-135m-instruct.fqcs";
  if (auto set = CodecSet::Load(path); set.ok() && (*set)->head_size() == head_size) return *set;
  return CodecSet::Parse(BuildCodecSet(30, 3, head_size, 1)).value();
}

// 90 pages as FP16 rows, and room for their codes: more than the second-level cache holds.
class Pages {
 public:
  Pages(Codec codec, int head_size) : codec_(codec), d_(head_size) {
    set_ = LoadCodecSet(head_size);
    context_ = {set_.get(), head_size, DType::kF16};
    const int pages = set_->layers() * set_->kv_heads();
    rows_.resize(pages * RowValues());
    decoded_.resize(rows_.size());
    primary_.resize(pages);
    refinement_.resize(pages);
    for (int i = 0; i < pages; ++i) AddPage(i);
    static_cast<void>(CpuBackend()->Encode(context_, encode_));
  }

  size_t RowBytes() const { return rows_.size() * sizeof(uint16_t); }
  size_t CodedBytes() const { return coded_bytes_; }
  void Encode() { static_cast<void>(CpuBackend()->Encode(context_, encode_)); }
  void Decode() { static_cast<void>(CpuBackend()->Decode(context_, decode_)); }
  const Backend::Context& context() const { return context_; }
  const std::vector<DecodeTask>& tasks() const { return decode_; }
  const std::vector<EncodeTask>& encode_tasks() const { return encode_; }
  const std::vector<uint16_t>& rows() const { return rows_; }
  std::vector<uint16_t>& decoded() { return decoded_; }

 private:
  size_t RowValues() const { return 2 * size_t{kPageTokens} * d_; }

  void AddPage(int index) {
    const int layer = index / set_->kv_heads(), head = index % set_->kv_heads();
    uint16_t* rows = rows_.data() + index * RowValues();
    std::vector<float> row(d_);
    for (int i = 0; i < 2 * kPageTokens; ++i) {
      const HeadCodec& side = i < kPageTokens ? set_->k(layer, head) : set_->v(layer, head);
      MakeRow(side, d_, index * 1000 + i, row.data());
      for (int c = 0; c < d_; ++c) rows[i * d_ + c] = FloatToHalf(row[c]);
    }
    const PageKind kind = codec_ == Codec::kExact       ? PageKind::kExact
                          : codec_ == Codec::kUniversal ? PageKind::kUniversal
                                                        : PageKind::kBase;
    const CodecProfile* profile = &set_->profile(layer, head);
    primary_[index].resize(PageBytes({kind, DType::kF16, d_, false}, profile));
    if (codec_ == Codec::kNearLossless) {
      refinement_[index].resize(
          PageBytes({PageKind::kRefinement, DType::kF16, d_, false}, profile));
    }
    coded_bytes_ += primary_[index].size() + refinement_[index].size();
    AddTasks(index, kind, layer, head);
  }

  void AddTasks(int index, PageKind kind, int layer, int head) {
    EncodeTask encode;
    encode.kind = kind;
    encode.layer = layer;
    encode.head = head;
    encode.primary = primary_[index].data();
    encode.refinement = refinement_[index].empty() ? nullptr : refinement_[index].data();
    const std::byte* from = reinterpret_cast<std::byte*>(rows_.data() + index * RowValues());
    encode.source.k.chunks[0] = from;
    encode.source.v.chunks[0] = from + RowValues();
    encode.source.k.token_stride = encode.source.v.token_stride = d_;
    encode_.push_back(encode);
    DecodeTask decode;
    decode.kind = kind;
    decode.layer = layer;
    decode.head = head;
    decode.primary = encode.primary;
    decode.refinement = encode.refinement;
    std::byte* to = reinterpret_cast<std::byte*>(decoded_.data() + index * RowValues());
    decode.target.k.chunks[0] = to;
    decode.target.v.chunks[0] = to + RowValues();
    decode.target.k.token_stride = decode.target.v.token_stride = d_;
    decode_.push_back(decode);
  }

  const Codec codec_;
  const int d_;
  std::shared_ptr<const CodecSet> set_;
  Backend::Context context_;
  std::vector<uint16_t> rows_, decoded_;
  std::vector<std::vector<std::byte>> primary_, refinement_;
  std::vector<EncodeTask> encode_;
  std::vector<DecodeTask> decode_;
  size_t coded_bytes_ = 0;
};

void Report(benchmark::State& state, const Pages& pages) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * pages.RowBytes()));
  state.counters["bits_per_value"] =
      16.0 * static_cast<double>(pages.CodedBytes()) / static_cast<double>(pages.RowBytes());
  state.SetLabel(CpuBackend()->name());
}

void BM_Encode(benchmark::State& state, Codec codec) {
  Pages pages(codec, static_cast<int>(state.range(0)));
  for (auto _ : state) pages.Encode();
  Report(state, pages);
}

void BM_Decode(benchmark::State& state, Codec codec) {
  Pages pages(codec, static_cast<int>(state.range(0)));
  for (auto _ : state) pages.Decode();
  Report(state, pages);
}

// Four query heads over each page: bytes are the FP16 rows that attention would have read.
void BM_Attend(benchmark::State& state, Codec codec) {
  const int d = static_cast<int>(state.range(0));
  Pages pages(codec, d);
  constexpr int kHeads = 4;
  std::vector<float> q(kHeads * d, 0.1f), out(kHeads * d), lse(kHeads);
  std::vector<AttendTask::Page> coded;
  std::vector<AttendTask> tasks;
  for (const DecodeTask& task : pages.tasks()) {
    coded.push_back({task.kind, task.primary, task.refinement, kPageTokens, false});
  }
  for (size_t i = 0; i < coded.size(); ++i) {
    AttendTask task;
    task.layer = pages.tasks()[i].layer;
    task.head = pages.tasks()[i].head;
    task.q_heads = kHeads;
    task.scale = 0.125f;
    task.q = q.data();
    task.out = out.data();
    task.lse = lse.data();
    task.pages = absl::MakeConstSpan(&coded[i], 1);
    tasks.push_back(task);
  }
  for (auto _ : state) static_cast<void>(CpuBackend()->Attend(pages.context(), tasks));
  Report(state, pages);
}

// What the node pays for a page that it measures against its codec set (--quality-sample).
void BM_MeasureError(benchmark::State& state, Codec codec) {
  Pages pages(codec, static_cast<int>(state.range(0)));
  std::vector<ErrorTask> tasks;
  for (const EncodeTask& encode : pages.encode_tasks()) {
    ErrorTask task;
    task.source = encode.source;
    task.layer = encode.layer;
    task.head = encode.head;
    task.primary = encode.primary;
    task.refinement = encode.refinement;
    tasks.push_back(task);
  }
  for (auto _ : state) {
    for (const ErrorTask& task : tasks) {
      benchmark::DoNotOptimize(MeasureError(pages.context(), task));
    }
  }
  Report(state, pages);
}

void BM_Memcpy(benchmark::State& state) {
  Pages pages(Codec::kExact, static_cast<int>(state.range(0)));
  for (auto _ : state) {
    std::memcpy(pages.decoded().data(), pages.rows().data(), pages.RowBytes());
    benchmark::ClobberMemory();
  }
  Report(state, pages);
}

// What Verify and every decode of a slab cost besides: bytes are coded bytes.
void BM_Checksum(benchmark::State& state) {
  const std::vector<std::byte> bytes(static_cast<size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(Checksum(bytes.data(), bytes.size()));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes.size()));
}

void BM_EncodeQ4(benchmark::State& state) {
  Pages pages(Codec::kExact, static_cast<int>(state.range(0)));
  std::vector<std::byte> blocks(pages.rows().size() / kQ4Values * kQ4Bytes);
  for (auto _ : state) {
    for (size_t i = 0; i < pages.rows().size() / kQ4Values; ++i) {
      float x[kQ4Values];
      for (int j = 0; j < kQ4Values; ++j) x[j] = HalfToFloat(pages.rows()[i * kQ4Values + j]);
      EncodeQ4(x, blocks.data() + i * kQ4Bytes);
    }
    benchmark::ClobberMemory();
  }
  Report(state, pages);
  state.counters["bits_per_value"] = 4.5;
}

void BM_DecodeQ4(benchmark::State& state) {
  Pages pages(Codec::kExact, static_cast<int>(state.range(0)));
  std::vector<std::byte> blocks(pages.rows().size() / kQ4Values * kQ4Bytes);
  for (auto _ : state) {
    for (size_t i = 0; i < pages.rows().size() / kQ4Values; ++i) {
      float x[kQ4Values];
      DecodeQ4(blocks.data() + i * kQ4Bytes, x);
      for (int j = 0; j < kQ4Values; ++j) pages.decoded()[i * kQ4Values + j] = FloatToHalf(x[j]);
    }
    benchmark::ClobberMemory();
  }
  Report(state, pages);
  state.counters["bits_per_value"] = 4.5;
}

#define FQ_CODEC_BENCHMARKS(function)                                                  \
  BENCHMARK_CAPTURE(function, compact, Codec::kCompact)->Arg(64)->Arg(128);            \
  BENCHMARK_CAPTURE(function, near_lossless, Codec::kNearLossless)->Arg(64)->Arg(128); \
  BENCHMARK_CAPTURE(function, universal, Codec::kUniversal)->Arg(64)->Arg(128);        \
  BENCHMARK_CAPTURE(function, exact, Codec::kExact)->Arg(64)->Arg(128)
FQ_CODEC_BENCHMARKS(BM_Encode);
FQ_CODEC_BENCHMARKS(BM_Decode);
FQ_CODEC_BENCHMARKS(BM_Attend);
BENCHMARK_CAPTURE(BM_MeasureError, compact, Codec::kCompact)->Arg(64)->Arg(128);
BENCHMARK_CAPTURE(BM_MeasureError, near_lossless, Codec::kNearLossless)->Arg(64)->Arg(128);
BENCHMARK(BM_Memcpy)->Arg(64)->Arg(128);
BENCHMARK(BM_Checksum)->Arg(2176)->Arg(1 << 18);
BENCHMARK(BM_EncodeQ4)->Arg(64)->Arg(128);
BENCHMARK(BM_DecodeQ4)->Arg(64)->Arg(128);

}  // namespace
}  // namespace fq

BENCHMARK_MAIN();
