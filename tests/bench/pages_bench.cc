// Speed of encode and decode on a GPU. 4,096 pages of eight heads, d = 128, FP16, engine blocks of
// 64 tokens in random order; rows whose components are unit Gaussian; CUDA graphs that take turns
// on four sets of buffers of more than five times the L2 together; medians of 21 replays. Prints
// one JSON object a line; GB/s count the FP16 bytes of the rows, as does the copy beside it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/base/check.h"
#include "kernels/codec/quantise.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/page_bytes.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"
#include "tests/testing/take_tables.h"

namespace fq {
namespace {

constexpr int kHeads = 8, kSets = 4, kReplays = 21;

// Pages of one layer on the device: `blocks` blocks of every head, jobs sorted by head.
struct Pages {
  int count;
  size_t primary_bytes, refinement_bytes;
  DeviceBuffer rows, decoded, primary, refinement, plain, blocks, jobs;
  DeviceBuffer row_sets;  // PagedRows of `rows` and of `decoded`

  RowSets Rows() const { return {row_sets.as<PagedRows>(), DType::kF16}; }
  RowSets Decoded() const { return {row_sets.as<PagedRows>() + 1, DType::kF16}; }
};

class Bench {
 public:
  Bench(int blocks, std::shared_ptr<const CodecSet> set)
      : d_(set->head_size()), blocks_(blocks), set_(std::move(set)) {
    coders_ = std::make_unique<CoderTables>(Value(CoderTables::Create(*set_)));
    Check(cudaStreamCreate(&stream_));
    for (int i = 0; i < kSets; ++i) sets_.push_back(MakePages(i));
  }
  ~Bench() { cudaStreamDestroy(stream_); }

  size_t RowBytes() const { return size_t(2) * 64 * d_ * 2 * blocks_ * kHeads; }

  void Encode(const Pages& pages, bool refined) {
    Check(EncodePages(PageKind::kBase, d_, coders_.get(), Jobs(pages, refined), pages.Rows(),
                      stream_));
  }
  void Decode(const Pages& pages, bool refined, Domain domain) {
    Check(DecodePages({PageKind::kBase, d_, domain}, coders_.get(), Jobs(pages, refined),
                      pages.Decoded(), stream_));
  }
  void EncodePlain(const Pages& pages, PageKind kind) {
    Check(EncodePages(kind, d_, nullptr, PlainJobs(pages), pages.Rows(), stream_));
  }
  void DecodePlain(const Pages& pages, PageKind kind) {
    Check(DecodePages({kind, d_}, nullptr, PlainJobs(pages), pages.Decoded(), stream_));
  }
  // Reads and writes the bytes of the rows in all.
  void Copy(const Pages& pages) {
    Check(cudaMemcpyAsync(pages.decoded.as<std::byte>(), pages.rows.as<std::byte>(), RowBytes() / 2,
                          cudaMemcpyDeviceToDevice, stream_));
  }

  // Prints the median of replays of one call on each set of pages.
  void Measure(const char* name, const std::function<void(const Pages&)>& call) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (const Pages& pages : sets_) call(pages);
    Check(cudaStreamEndCapture(stream_, &graph));
    Check(cudaGraphInstantiate(&replay, graph, 0));
    cudaEvent_t begin, end;
    Check(cudaEventCreate(&begin));
    Check(cudaEventCreate(&end));
    std::vector<double> micros;
    for (int i = 0; i < kReplays + 3; ++i) {
      Check(cudaEventRecord(begin, stream_));
      Check(cudaGraphLaunch(replay, stream_));
      Check(cudaEventRecord(end, stream_));
      Check(cudaEventSynchronize(end));
      float ms;
      Check(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 3) micros.push_back(1000.0 * ms / kSets);
    }
    std::sort(micros.begin(), micros.end());
    std::printf(
        "{\"name\": \"%s\", \"head_size\": %d, \"pages\": %d, \"us\": %.2f, \"us_p10\": %.2f, "
        "\"us_p90\": %.2f, \"gb_per_s\": %.0f}\n",
        name, d_, blocks_ * kHeads, micros[kReplays / 2], micros[kReplays / 10],
        micros[kReplays * 9 / 10], RowBytes() / micros[kReplays / 2] / 1000);
    std::fflush(stdout);
    Check(cudaGraphExecDestroy(replay));
    Check(cudaGraphDestroy(graph));
  }

  // Launch to finish as the host sees it.
  void MeasureLatency(const char* name, const std::function<void(const Pages&)>& call) {
    std::vector<double> micros;
    for (int i = 0; i < 200; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      call(sets_[i % kSets]);
      Check(cudaStreamSynchronize(stream_));
      micros.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
              .count());
    }
    std::sort(micros.begin(), micros.end());
    std::printf(
        "{\"name\": \"%s\", \"head_size\": %d, \"pages\": %d, \"us\": %.2f, \"us_p90\": "
        "%.2f}\n",
        name, d_, blocks_ * kHeads, micros[100], micros[180]);
    std::fflush(stdout);
  }

  void MeasureAll() {
    Measure("copy", [&](const Pages& p) { Copy(p); });
    for (const auto& [name, refined] : {std::pair("compact", false), {"near-lossless", true}}) {
      const std::string suffix = std::string(" ") + name;
      Measure(("encode" + suffix).c_str(), [&](const Pages& p) { Encode(p, refined); });
      Measure(("decode coded" + suffix).c_str(),
              [&](const Pages& p) { Decode(p, refined, Domain::kCoded); });
      Measure(("decode rows" + suffix).c_str(),
              [&](const Pages& p) { Decode(p, refined, Domain::kRows); });
    }
    for (const auto& [name, kind] :
         {std::pair("exact", PageKind::kExact), {"universal", PageKind::kUniversal}}) {
      const std::string suffix = std::string(" ") + name;
      Measure(("encode" + suffix).c_str(), [&](const Pages& p) { EncodePlain(p, kind); });
      Measure(("decode" + suffix).c_str(), [&](const Pages& p) { DecodePlain(p, kind); });
    }
  }

  void MeasureBlock() {
    MeasureLatency("one block encode", [&](const Pages& p) { Encode(p, false); });
    MeasureLatency("one block encode near-lossless", [&](const Pages& p) { Encode(p, true); });
    MeasureLatency("one block decode", [&](const Pages& p) { Decode(p, false, Domain::kRows); });
  }

  // Gaussian rows for every page, and the pages that they make. `wide` is the same codec set with
  // class 8 everywhere.
  void Prepare(const CoderTables& wide) {
    Random random(1);
    std::vector<uint8_t> codes(1 << 20);
    for (uint8_t& code : codes) code = Class8Code(static_cast<float>(random.Gaussian()));
    const size_t page_bytes = size_t(128) * d_;
    const DeviceBuffer pages = Value(DeviceBuffer::Allocate(page_bytes * blocks_ * kHeads));
    for (size_t i = 0; i < sets_.size(); ++i) {
      for (size_t at = 0; at < pages.bytes(); at += page_bytes) {
        const size_t from = random.Below(static_cast<uint32_t>((codes.size() - page_bytes) / 16));
        Check(cudaMemcpyAsync(pages.as<std::byte>() + at, codes.data() + 16 * from, page_bytes,
                              cudaMemcpyHostToDevice, stream_));
      }
      FillRows(sets_[i], wide, pages.as<std::byte>(), page_bytes);
      Encode(sets_[i], true);
    }
    Check(cudaStreamSynchronize(stream_));
  }

 private:
  Pages MakePages(int seed) {
    Pages pages;
    pages.count = blocks_ * kHeads;
    std::vector<int32_t> order(blocks_);
    for (int i = 0; i < blocks_; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    pages.blocks = Value(DeviceBuffer::CopyOf(order.data(), order.size() * 4));
    pages.rows = Value(DeviceBuffer::Allocate(RowBytes()));
    pages.decoded = Value(DeviceBuffer::Allocate(RowBytes()));
    pages.plain = Value(DeviceBuffer::Allocate(RowBytes()));
    const PagedRows row_sets[] = {Rows(pages.rows), Rows(pages.decoded)};
    pages.row_sets = Value(DeviceBuffer::CopyOf(row_sets, sizeof(row_sets)));
    std::vector<PageJob> jobs(pages.count);
    pages.primary_bytes = pages.refinement_bytes = 0;
    for (int i = 0; i < pages.count; ++i) {
      const CodecProfile& profile = set_->profile(0, i / blocks_);
      jobs[i].primary = reinterpret_cast<std::byte*>(pages.primary_bytes);
      jobs[i].refinement = reinterpret_cast<std::byte*>(pages.refinement_bytes);
      pages.primary_bytes += PageBytes({PageKind::kBase, DType::kF16, d_, false}, &profile);
      pages.refinement_bytes +=
          PageBytes({PageKind::kRefinement, DType::kF16, d_, false}, &profile);
    }
    pages.primary = Value(DeviceBuffer::Allocate(pages.primary_bytes));
    pages.refinement = Value(DeviceBuffer::Allocate(pages.refinement_bytes));
    for (int i = 0; i < pages.count; ++i) {
      jobs[i].primary = pages.primary.as<std::byte>() + reinterpret_cast<size_t>(jobs[i].primary);
      jobs[i].refinement =
          pages.refinement.as<std::byte>() + reinterpret_cast<size_t>(jobs[i].refinement);
      jobs[i].blocks = pages.blocks.as<int32_t>() + i % blocks_;
      jobs[i].head = static_cast<int16_t>(i / blocks_);
      jobs[i].coder = i / blocks_;
    }
    std::vector<PageJob> base = jobs;  // behind them: the same jobs without refinement
    for (PageJob& job : base) job.refinement = nullptr;
    std::vector<PageJob> plain = base;  // behind those: exact or universal ones
    for (int i = 0; i < pages.count; ++i) {
      plain[i].primary = pages.plain.as<std::byte>() + RowBytes() / pages.count * i;
    }
    jobs.insert(jobs.end(), base.begin(), base.end());
    jobs.insert(jobs.end(), plain.begin(), plain.end());
    pages.jobs = Value(DeviceBuffer::CopyOf(jobs.data(), jobs.size() * sizeof(PageJob)));
    return pages;
  }

  // Rows out of codes of class 8.
  void FillRows(const Pages& pages, const CoderTables& wide, std::byte* codes, size_t page_bytes) {
    std::vector<PageJob> jobs(pages.count);
    Check(cudaMemcpy(jobs.data(), pages.jobs.as<std::byte>(), jobs.size() * sizeof(PageJob),
                     cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].primary = codes + i * page_bytes;
      jobs[i].refinement = nullptr;
    }
    const DeviceBuffer own =
        Value(DeviceBuffer::CopyOf(jobs.data(), jobs.size() * sizeof(PageJob)));
    PageJobs list;
    list.jobs = own.as<PageJob>();
    list.count = pages.count;
    list.refined = false;
    Check(DecodePages({PageKind::kBase, d_, Domain::kRows}, &wide, list, pages.Rows(), stream_));
    Check(cudaStreamSynchronize(stream_));
  }

  PageJobs Jobs(const Pages& pages, bool refined) const {
    PageJobs jobs;
    jobs.jobs = pages.jobs.as<PageJob>() + (refined ? 0 : pages.count);
    jobs.count = pages.count;
    jobs.refined = refined;
    jobs.checked = false;
    return jobs;
  }

  PageJobs PlainJobs(const Pages& pages) const {
    PageJobs jobs;
    jobs.jobs = pages.jobs.as<PageJob>() + 2 * pages.count;
    jobs.count = pages.count;
    jobs.checked = false;
    return jobs;
  }

  PagedRows Rows(const DeviceBuffer& buffer) const {
    PagedRows rows;
    rows.k = buffer.as<std::byte>();
    rows.v = buffer.as<std::byte>() + RowBytes() / 2;
    rows.head_stride = d_;
    rows.token_stride = kHeads * d_;
    rows.block_stride = 64 * rows.token_stride;
    return rows;
  }

  const int d_, blocks_;
  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<CoderTables> coders_;
  std::vector<Pages> sets_;
  cudaStream_t stream_;
};

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  CLI::App app("Speed of encode and decode on a GPU");
  int head_size = 128, pages = 4096, bits = -1;
  std::string tables;
  app.add_option("--head-size", head_size)->check(CLI::IsMember({64, 96, 128, 256}));
  app.add_option("--pages", pages, "of all heads")->check(CLI::Range(8, 65536));
  app.add_option("--class", bits, "every group has this class")->check(CLI::IsMember({1, 2, 4, 8}));
  app.add_option("--tables", tables, "codec set whose tables are taken; default: random ones")
      ->check(CLI::ExistingFile);
  CLI11_PARSE(app, argc, argv);
  std::vector<std::byte> file = fq::BuildCodecSet(1, fq::kHeads, head_size, 3);
  if (!tables.empty()) {
    fq::TakeTables(*fq::Value(fq::CodecSet::Load(tables)), *fq::Value(fq::CodecSet::Parse(file)),
                   &file);
  }
  std::shared_ptr<const fq::CodecSet> set = fq::Value(fq::CodecSet::Parse(file));
  const auto of_class = [&](int value) {
    return fq::Value(fq::CodecSet::Parse(fq::WithOneClass(file, *set, value)));
  };
  const std::shared_ptr<const fq::CodecSet> wide_set = of_class(8);
  if (bits > 0) set = of_class(bits);
  const fq::CoderTables wide = fq::Value(fq::CoderTables::Create(*wide_set, false));
  {
    fq::Bench bench(pages / fq::kHeads, set);
    bench.Prepare(wide);
    bench.MeasureAll();
  }
  fq::Bench block(1, set);
  block.Prepare(wide);
  block.MeasureBlock();
}
