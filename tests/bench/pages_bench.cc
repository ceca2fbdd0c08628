// Speed of encode and decode on a GPU, and how many codes equal the CPU's. 4,096 pages of eight
// heads, d = 128, FP16, engine blocks of 64 tokens in random order; CUDA graphs that take turns on
// four sets of buffers of more than five times the L2 together; medians of 21 replays. Prints one
// JSON object a line; GB/s count the FP16 bytes of the rows, as does the copy beside it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

constexpr int kHeads = 8, kSets = 4, kReplays = 21;

void Check(cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  FQ_CHECK(error == cudaSuccess);
}
void Check(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  FQ_CHECK(status.ok());
}
template <typename T>
T Value(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

// Pages of one layer on the device: `blocks` blocks of every head, jobs sorted by head.
struct Pages {
  int count;
  size_t primary_bytes, refinement_bytes;
  DeviceBuffer rows, primary, refinement, blocks, jobs, checksums, broken;
};

class Bench {
 public:
  Bench(int head_size, int blocks) : d_(head_size), blocks_(blocks) {
    set_ = Value(CodecSet::Parse(BuildCodecSet(1, kHeads, d_, 3)));
    coders_ = std::make_unique<CoderTables>(Value(CoderTables::Create(*set_)));
    Check(cudaStreamCreate(&stream_));
    for (int i = 0; i < kSets; ++i) sets_.push_back(MakePages(i));
  }
  ~Bench() { cudaStreamDestroy(stream_); }

  size_t RowBytes() const { return size_t(2) * 64 * d_ * 2 * blocks_ * kHeads; }

  void Encode(const Pages& pages, bool refined) {
    Check(EncodePages(PageKind::kBase, d_, coders_.get(), Jobs(pages, refined), Rows(pages),
                      stream_));
  }
  void Decode(const Pages& pages, bool refined, Domain domain) {
    Check(DecodePages({PageKind::kBase, d_, domain}, coders_.get(), Jobs(pages, refined),
                      Rows(pages), stream_));
  }
  void Copy(const Pages& pages) {
    Check(cudaMemcpyAsync(pages.rows.as<std::byte>(), pages.rows.as<std::byte>() + RowBytes() / 2,
                          RowBytes() / 2, cudaMemcpyDeviceToDevice, stream_));
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
  }

  void MeasureBlock() {
    MeasureLatency("one block encode", [&](const Pages& p) { Encode(p, false); });
    MeasureLatency("one block encode near-lossless", [&](const Pages& p) { Encode(p, true); });
    MeasureLatency("one block decode", [&](const Pages& p) { Decode(p, false, Domain::kRows); });
  }

  // Encodes rows made of random codes here and on the CPU, `rounds` times all pages of a set.
  void Compare(int rounds) {
    int64_t differ = 0, total = 0;
    const Pages& pages = sets_[0];
    for (int round = 0; round < rounds; ++round) {
      Fill(pages, 1000 + round);
      Decode(pages, true, Domain::kRows);
      Encode(pages, true);
      Check(cudaStreamSynchronize(stream_));
      CompareOnce(pages, &differ, &total);
    }
    std::printf(
        "{\"name\": \"codes equal to the CPU's\", \"head_size\": %d, \"pages\": %lld, "
        "\"code_bytes\": %lld, \"equal_percent\": %.5f}\n",
        d_, static_cast<long long>(rounds) * pages.count, static_cast<long long>(total),
        100.0 - 100.0 * static_cast<double>(differ) / static_cast<double>(total));
    std::fflush(stdout);
  }

  // Random codes for every page; then rows, so that encode has something to find.
  void Prepare() {
    for (size_t i = 0; i < sets_.size(); ++i) {
      Fill(sets_[i], i);
      Decode(sets_[i], true, Domain::kRows);
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
    pages.checksums = Value(DeviceBuffer::Allocate(16 * pages.count));
    pages.broken = Value(DeviceBuffer::Allocate(pages.count));
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
    jobs.insert(jobs.end(), base.begin(), base.end());
    pages.jobs = Value(DeviceBuffer::CopyOf(jobs.data(), jobs.size() * sizeof(PageJob)));
    return pages;
  }

  void Fill(const Pages& pages, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<uint64_t> words(std::max(pages.primary_bytes, pages.refinement_bytes) / 8);
    for (uint64_t& word : words) word = random() | 0x0101010101010101u;  // class 8 has no byte 0
    Check(cudaMemcpy(pages.primary.as<std::byte>(), words.data(), pages.primary_bytes,
                     cudaMemcpyHostToDevice));
    std::rotate(words.begin(), words.begin() + 1, words.end());
    Check(cudaMemcpy(pages.refinement.as<std::byte>(), words.data(), pages.refinement_bytes,
                     cudaMemcpyHostToDevice));
  }

  PageJobs Jobs(const Pages& pages, bool refined) const {
    PageJobs jobs;
    jobs.jobs = pages.jobs.as<PageJob>() + (refined ? 0 : pages.count);
    jobs.count = pages.count;
    jobs.refined = refined;
    jobs.broken = pages.broken.as<uint8_t>();
    return jobs;
  }

  PagedRows Rows(const Pages& pages) const {
    PagedRows rows;
    rows.k = pages.rows.as<std::byte>();
    rows.v = pages.rows.as<std::byte>() + RowBytes() / 2;
    rows.head_stride = d_;
    rows.token_stride = kHeads * d_;
    rows.block_stride = 64 * rows.token_stride;
    return rows;
  }

  void CompareOnce(const Pages& pages, int64_t* differ, int64_t* total) {
    std::vector<std::byte> rows(RowBytes()), primary(pages.primary_bytes),
        refinement(pages.refinement_bytes);
    std::vector<int32_t> order(blocks_);
    Check(cudaMemcpy(rows.data(), pages.rows.as<std::byte>(), rows.size(), cudaMemcpyDeviceToHost));
    Check(cudaMemcpy(primary.data(), pages.primary.as<std::byte>(), primary.size(),
                     cudaMemcpyDeviceToHost));
    Check(cudaMemcpy(refinement.data(), pages.refinement.as<std::byte>(), refinement.size(),
                     cudaMemcpyDeviceToHost));
    Check(cudaMemcpy(order.data(), pages.blocks.as<std::byte>(), order.size() * 4,
                     cudaMemcpyDeviceToHost));
    std::atomic<int> next{0};
    std::atomic<int64_t> wrong{0};
    const auto work = [&] {
      for (int head; (head = next++) < kHeads * 8;) {
        CompareHead(rows, order, primary, refinement, head, &wrong);
      }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    *differ += wrong;
    *total += static_cast<int64_t>(primary.size() + refinement.size());
  }

  // An eighth of the pages of one head.
  void CompareHead(const std::vector<std::byte>& rows, const std::vector<int32_t>& order,
                   const std::vector<std::byte>& primary, const std::vector<std::byte>& refinement,
                   int part, std::atomic<int64_t>* wrong) const {
    const int head = part / 8;
    size_t at = 0, at_refinement = 0;
    const auto bytes = [&](PageKind kind, int of_head) {
      return PageBytes({kind, DType::kF16, d_, false}, &set_->profile(0, of_head));
    };
    for (int h = 0; h < head; ++h) {
      at += bytes(PageKind::kBase, h) * blocks_;
      at_refinement += bytes(PageKind::kRefinement, h) * blocks_;
    }
    const size_t size = bytes(PageKind::kBase, head), size2 = bytes(PageKind::kRefinement, head);
    std::vector<std::byte> own(size), own2(size2);
    for (int block = part % 8; block < blocks_; block += 8) {
      EncodeTask task;
      const size_t offset = (size_t(order[block]) * 64 * kHeads + head) * d_ * 2;
      task.source.k.chunks[0] = rows.data() + offset;
      task.source.v.chunks[0] = rows.data() + RowBytes() / 2 + offset;
      task.source.k.token_stride = task.source.v.token_stride = kHeads * d_;
      task.head = head;
      task.primary = own.data();
      task.refinement = own2.data();
      Check(CpuBackend()->Encode({set_.get(), d_, DType::kF16}, {task}));
      int64_t count = 0;
      for (size_t i = 0; i < size; ++i) count += own[i] != primary[at + block * size + i];
      for (size_t i = 0; i < size2; ++i) {
        count += own2[i] != refinement[at_refinement + block * size2 + i];
      }
      *wrong += count;
    }
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
  CLI::App app("Speed of encode and decode on a GPU, and agreement with the CPU");
  int head_size = 128, pages = 4096, compare = 0;
  app.add_option("--head-size", head_size)->check(CLI::IsMember({64, 96, 128, 256}));
  app.add_option("--pages", pages, "of all heads")->check(CLI::Range(8, 65536));
  app.add_option("--compare", compare, "pages to encode on the CPU too");
  CLI11_PARSE(app, argc, argv);
  {
    fq::Bench bench(head_size, pages / fq::kHeads);
    bench.Prepare();
    bench.MeasureAll();
    if (compare > 0) bench.Compare((compare + pages - 1) / pages);
  }
  fq::Bench block(head_size, 1);
  block.Prepare();
  block.MeasureBlock();
}
