// Whether the GPU codes pages as the CPU does, on many pages of every (layer, head) of a codec set:
// equal codes, weighted error, and the coded domain bit for bit. Runs on a GPU (make test-gpu);
// prints one JSON object and fails when a promise of issue 5 does not hold.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/quantise.h"
#include "kernels/cpu/page_coder.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/page_bytes.h"
#include "kernels/page_error.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

constexpr int kBatch = 4096;  // pages
constexpr double kCodesEqual = 0.999, kErrorWithin = 1e-4;

// The same bytes on the device and, after ToHost, in pinned memory of the host.
class Mirror {
 public:
  explicit Mirror(size_t bytes) : device_(Value(DeviceBuffer::Allocate(bytes))) {
    Check(cudaMallocHost(&host_, bytes));
  }
  ~Mirror() { cudaFreeHost(host_); }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  std::byte* device() const { return device_.as<std::byte>(); }
  std::byte* host() const { return static_cast<std::byte*>(host_); }
  void ToHost() const {
    Check(cudaMemcpy(host_, device(), device_.bytes(), cudaMemcpyDeviceToHost));
  }

 private:
  DeviceBuffer device_;
  void* host_ = nullptr;
};

struct Counts {
  std::atomic<int64_t> code_bytes{0}, different{0}, coded_different{0};
};

// Of compact and near-lossless, K and V together.
struct Errors {
  double gpu[2] = {0, 0}, cpu[2] = {0, 0}, energy = 0;
};

class Agreement {
 public:
  explicit Agreement(const std::vector<std::byte>& file)
      : set_(Value(CodecSet::Parse(file))),
        d_(set_->head_size()),
        coders_(Value(CoderTables::Create(*set_))),
        wide_(WideCoders(file)),
        pool_(MakePool()),
        rows_(RowBytes() * kBatch),
        primary_(PageRoom() * kBatch),
        refinement_(PageRoom() * kBatch),
        coded_(2 * RowBytes() * kBatch) {}

  // Codes `count` pages on both sides.
  void Run(int count, int threads) {
    for (int first = 0; first < count; first += kBatch) {
      const int pages = std::min(kBatch, count - first);
      CodeOnDevice(first, pages);
      CompareAll(pages, threads);
      pages_ += pages;
    }
  }

  // Prints what was found; true when all is as promised.
  bool Report(double seconds) const {
    const double equal =
        1.0 - static_cast<double>(counts_.different) / static_cast<double>(counts_.code_bytes);
    const double off[2] = {errors_.gpu[0] / errors_.cpu[0] - 1,
                           errors_.gpu[1] / errors_.cpu[1] - 1};
    std::printf(
        "{\"name\": \"agreement with the CPU\", \"head_size\": %d, \"pages\": %lld, "
        "\"code_bytes\": "
        "%lld, \"equal_percent\": %.5f, \"compact_error\": %.6f, \"compact_error_off_percent\": "
        "%.6f, \"near_lossless_error\": %.6f, \"near_lossless_error_off_percent\": %.6f, "
        "\"coded_values_different\": %lld, \"seconds\": %.1f}\n",
        d_, static_cast<long long>(pages_), static_cast<long long>(counts_.code_bytes), 100 * equal,
        errors_.gpu[0] / errors_.energy, 100 * off[0], errors_.gpu[1] / errors_.energy,
        100 * off[1], static_cast<long long>(counts_.coded_different), seconds);
    return equal >= kCodesEqual && std::abs(off[0]) <= kErrorWithin &&
           std::abs(off[1]) <= kErrorWithin && counts_.coded_different == 0;
  }

 private:
  size_t RowBytes() const { return ExactPageBytes(d_, 2); }
  size_t PageRoom() const { return 2 * static_cast<size_t>(kPageTokens) * d_; }
  int Heads() const { return set_->layers() * set_->kv_heads(); }

  // The transforms of the codec set with class 8 everywhere.
  CoderTables WideCoders(const std::vector<std::byte>& file) const {
    const auto wide = Value(CodecSet::Parse(WithOneClass(file, *set_, 8)));
    return Value(CoderTables::Create(*wide, false));
  }

  // Gaussian codes of class 8: a page starts at any multiple of 16 bytes.
  static DeviceBuffer MakePool() {
    Random random(11);
    std::vector<uint8_t> codes(16 << 20);
    for (uint8_t& code : codes) code = Class8Code(static_cast<float>(random.Gaussian()));
    return Value(DeviceBuffer::CopyOf(codes.data(), codes.size()));
  }

  // Rows out of the pool: v as class 8 says, x = Ai v + mu, which the FP16 rows round.
  void CodeOnDevice(int first, int pages) {
    std::vector<PageJob> jobs(pages);
    std::vector<int32_t> blocks(pages);
    for (int i = 0; i < pages; ++i) {
      blocks[i] = i;
      jobs[i].coder = (first + i) % Heads();
    }
    const DeviceBuffer device_blocks = Value(DeviceBuffer::CopyOf(blocks.data(), 4 * pages));
    for (int i = 0; i < pages; ++i) {
      jobs[i].blocks = device_blocks.as<int32_t>() + i;
      jobs[i].primary = primary_.device() + i * PageRoom();
      jobs[i].refinement = refinement_.device() + i * PageRoom();
    }
    jobs_ = jobs;
    MakeRows(jobs);
    const DeviceBuffer own = Value(DeviceBuffer::CopyOf(jobs.data(), pages * sizeof(PageJob)));
    PageJobs list;
    list.jobs = own.as<PageJob>();
    list.count = pages;
    list.checked = false;
    const DeviceBuffer rows = Rows(rows_, DType::kF16), coded = Rows(coded_, DType::kF32);
    Check(EncodePages(PageKind::kBase, d_, &coders_, list, {rows.as<PagedRows>(), DType::kF16},
                      nullptr));
    Check(DecodePages({PageKind::kBase, d_, Domain::kCoded}, &coders_, list,
                      {coded.as<PagedRows>(), DType::kF32}, nullptr));
    for (const Mirror* mirror : {&rows_, &primary_, &refinement_, &coded_}) mirror->ToHost();
  }

  void MakeRows(std::vector<PageJob> jobs) {
    for (PageJob& job : jobs) {
      const size_t last = pool_.bytes() - PageRoom();
      job.primary = pool_.as<std::byte>() + 16 * (random_.Next() % (last / 16));
      job.refinement = nullptr;
    }
    const DeviceBuffer own =
        Value(DeviceBuffer::CopyOf(jobs.data(), jobs.size() * sizeof(PageJob)));
    PageJobs list;
    list.jobs = own.as<PageJob>();
    list.count = static_cast<int>(jobs.size());
    list.refined = false;
    const DeviceBuffer rows = Rows(rows_, DType::kF16);
    Check(DecodePages({PageKind::kBase, d_, Domain::kRows}, &wide_, list,
                      {rows.as<PagedRows>(), DType::kF16}, nullptr));
    Check(cudaStreamSynchronize(nullptr));
  }

  // Pages of rows behind one another, K before V.
  DeviceBuffer Rows(const Mirror& mirror, DType dtype) const {
    PagedRows rows;
    rows.k = mirror.device();
    rows.v = mirror.device() + kPageTokens * d_ * ElementBytes(dtype);
    rows.block_stride = 2 * kPageTokens * d_;
    rows.token_stride = d_;
    return Value(DeviceBuffer::CopyOf(&rows, sizeof(rows)));
  }

  void CompareAll(int pages, int threads) {
    std::atomic<int> next{0};
    std::vector<Errors> errors(threads);
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i) {
      team.emplace_back([&, i] {
        for (int page; (page = next++) < pages;) ComparePage(page, &errors[i]);
      });
    }
    for (std::thread& thread : team) thread.join();
    for (const Errors& own : errors) {
      for (int i = 0; i < 2; ++i) {
        errors_.gpu[i] += own.gpu[i];
        errors_.cpu[i] += own.cpu[i];
      }
      errors_.energy += own.energy;
    }
  }

  SourcePage Source(int page) const {
    SourcePage source;
    source.k.chunks[0] = rows_.host() + page * RowBytes();
    source.v.chunks[0] = rows_.host() + page * RowBytes() + RowBytes() / 2;
    source.k.token_stride = source.v.token_stride = d_;
    return source;
  }

  void ComparePage(int page, Errors* errors) {
    const int head = jobs_[page].coder % set_->kv_heads(),
              layer = jobs_[page].coder / set_->kv_heads();
    const Backend::Context context{set_.get(), d_, DType::kF16};
    std::vector<std::byte> primary(Bytes(PageKind::kBase, layer, head)),
        refinement(Bytes(PageKind::kRefinement, layer, head));
    EncodeTask task;
    task.source = Source(page);
    task.layer = layer;
    task.head = head;
    task.primary = primary.data();
    task.refinement = refinement.data();
    Check(CpuBackend()->Encode(context, {task}));
    const std::byte* own_primary = primary_.host() + page * PageRoom();
    const std::byte* own_refinement = refinement_.host() + page * PageRoom();
    CountDifferent(primary, own_primary);
    CountDifferent(refinement, own_refinement);
    ErrorTask error{task.source, layer, head};
    for (int i = 0; i < 2; ++i) {
      AddError(context, error, own_primary, i == 0 ? nullptr : own_refinement, &errors->gpu[i],
               nullptr);
      AddError(context, error, primary.data(), i == 0 ? nullptr : refinement.data(),
               &errors->cpu[i], i == 0 ? &errors->energy : nullptr);
    }
    CompareCoded(page, layer, head, own_primary, own_refinement);
  }

  size_t Bytes(PageKind kind, int layer, int head) const {
    return PageBytes({kind, DType::kF16, d_, false}, &set_->profile(layer, head));
  }

  void CountDifferent(const std::vector<std::byte>& cpu, const std::byte* gpu) {
    int64_t different = 0;
    for (size_t i = 0; i < cpu.size(); ++i) different += cpu[i] != gpu[i] ? 1 : 0;
    counts_.different += different;
    counts_.code_bytes += static_cast<int64_t>(cpu.size());
  }

  static void AddError(const Backend::Context& context, ErrorTask task, const std::byte* primary,
                       const std::byte* refinement, double* error, double* energy) {
    task.primary = primary;
    task.refinement = refinement;
    const PageError found = MeasureError(context, task);
    *error += found.error[0] + found.error[1];
    if (energy != nullptr) *energy += found.energy[0] + found.energy[1];
  }

  // The GPU's coded rows against what the CPU reads out of the GPU's pages.
  void CompareCoded(int page, int layer, int head, const std::byte* primary,
                    const std::byte* refinement) {
    const auto* rows = reinterpret_cast<const float*>(coded_.host() + 2 * page * RowBytes());
    alignas(64) float v[kPageTokens * kMaxHeadSize];
    int64_t different = 0;
    for (Side side : {Side::kKey, Side::kValue}) {
      CodedSide coded = CodedSide::Of(*set_, layer, head, side);
      coded.base = primary;
      coded.refinement = refinement;
      DecodeCoded(SimdPrimitives(), coded, v);
      for (int i = 0; i < kPageTokens * d_; ++i) {
        const float was = v[(i % d_) * kPageTokens + i / d_];
        different += FloatBits(was) != FloatBits(rows[i]) ? 1 : 0;
      }
      rows += kPageTokens * d_;
    }
    counts_.coded_different += different;
  }

  std::shared_ptr<const CodecSet> set_;
  const int d_;
  CoderTables coders_;
  CoderTables wide_;
  DeviceBuffer pool_;
  Mirror rows_, primary_, refinement_, coded_;
  std::vector<PageJob> jobs_;
  Random random_{1};
  Counts counts_;
  Errors errors_;
  int64_t pages_ = 0;
};

std::vector<std::byte> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  CLI::App app("Pages coded by the GPU and by the CPU");
  std::string codec_set;
  int pages = 1000000;
  app.add_option("codec-set", codec_set)->required()->check(CLI::ExistingFile);
  app.add_option("--pages", pages)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const auto begin = std::chrono::steady_clock::now();
  fq::Agreement agreement(fq::ReadFile(codec_set));
  agreement.Run(pages, static_cast<int>(std::thread::hardware_concurrency()));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return agreement.Report(seconds.count()) ? 0 : 1;
}
