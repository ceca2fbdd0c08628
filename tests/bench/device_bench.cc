// Speed of whole slabs on a GPU: Encode and Decode of blocks of a 70B (80 layers, 8 heads, d = 128)
// and an 8B shape (32 layers), FP16, engine blocks in random order, rows whose components are unit
// Gaussian, tables of a measured codec set. Engine blocks have 64 tokens, [K|V][token][head][d], or
// 16 as vLLM has them, [head][token][K|V][d]. The way is a bare DeviceQueue, or the node's
// DeviceScheduler, which cuts large calls into pieces. Each figure is the median over calls as the
// host sees them, in turns with a copy on the device of as many bytes. Prints one JSON object a
// line; GB/s count the FP16 bytes of the rows once, and so does the copy beside it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>

#include "CLI/CLI.hpp"
#include "kernels/codec/quantise.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/slab_layout.h"
#include "server/device/device_scheduler.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"
#include "tests/testing/take_tables.h"

namespace fq {
namespace {

constexpr int kHeads = 8, kD = 128;
constexpr uint64_t kBlockBytes = 2 * 64 * kHeads * kD * 2;  // of a layer

// Of an engine's block.
struct Chunk {
  explicit Chunk(int chunk_tokens) : tokens(chunk_tokens) {
    if (tokens != 64) {
      token_stride = 2 * kD;
      head_stride = tokens * token_stride;
      v_offset = kD * 2;
    }
  }
  int per_block() const { return 64 / tokens; }
  uint64_t bytes() const { return kBlockBytes / per_block(); }

  int tokens;
  int64_t token_stride = kHeads * kD, head_stride = kD;  // elements
  uint64_t v_offset = kBlockBytes / 2;
};

struct Kind {
  const char* name;
  PageKind primary;
  bool refined;
};
constexpr Kind kKinds[] = {{"compact", PageKind::kBase, false},
                           {"near-lossless", PageKind::kBase, true},
                           {"universal", PageKind::kUniversal, false},
                           {"exact", PageKind::kExact, false}};

class Bench {
 public:
  Bench(Device* device, int layers, Chunk chunk, int most_blocks,
        const std::vector<std::byte>& file)
      : device_(device),
        layers_(layers),
        chunk_(chunk),
        most_blocks_(most_blocks),
        set_(Value(CodecSet::Parse(file))),
        layout_(Value(SlabLayout::Create(Shape(), set_))),
        codec_(Value(device->CreateCodec(Shape(), set_))),
        queue_(Value(device->CreateQueue(true))),
        rows_(Value(DeviceBuffer::Allocate(RowBytes(most_blocks)))),
        decoded_(Value(DeviceBuffer::Allocate(RowBytes(most_blocks)))) {
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    FillRows(file);
  }
  ~Bench() { cudaStreamDestroy(stream_); }

  // `scheduler`: null for the bare queue.
  void Measure(const Kind& kind, int blocks, int calls, DeviceScheduler* scheduler) {
    const std::vector<DeviceBlock> list = BlocksOf(kind, blocks);
    std::vector<DeviceRows::Layer> in_layers, out_layers;
    const DeviceRows in = RowsIn(rows_, &in_layers), out = RowsIn(decoded_, &out_layers);
    std::vector<uint8_t> broken(blocks);
    const auto schedule = [&](DeviceWork work, const DeviceRows& rows) {
      DeviceCall call;
      call.work = work;
      call.session = this;
      call.codec = codec_.get();
      call.rows = rows;
      call.blocks = list;
      Check(scheduler->Run(call));
      if (work == DeviceWork::kDecode) broken = call.broken;
    };
    const auto encode = [&] {
      if (scheduler != nullptr) return schedule(DeviceWork::kEncode, in);
      Check(queue_->Encode(*codec_, {&in, 1}, list));
      Check(queue_->Finish());
    };
    const auto decode = [&] {
      if (scheduler != nullptr) return schedule(DeviceWork::kDecode, out);
      Check(queue_->Decode(*codec_, {&out, 1}, list, absl::MakeSpan(broken)));
      Check(queue_->Finish());
    };
    const auto copy = [&] {
      Check(cudaMemcpyAsync(decoded_.as<std::byte>(), rows_.as<std::byte>(), RowBytes(blocks),
                            cudaMemcpyDeviceToDevice, stream_));
      Check(cudaStreamSynchronize(stream_));
    };
    std::vector<double> micros[3];
    for (int i = 0; i < calls + 2; ++i) {
      const std::function<void()> works[] = {copy, encode, decode};
      for (int w = 0; w < 3; ++w) {
        const double took = Micros(works[w]);
        if (i >= 2) micros[w].push_back(took);
      }
      FQ_CHECK(std::count(broken.begin(), broken.end(), 0) == blocks);
    }
    const char* way = scheduler == nullptr ? "queue" : "scheduler";
    Print("store", way, kind.name, blocks, micros[1], micros[0]);
    Print("load", way, kind.name, blocks, micros[2], micros[0]);
  }

 private:
  SlabShape Shape() const {
    return {0, static_cast<uint16_t>(layers_), 0, kHeads, kD, DType::kF16};
  }
  uint64_t RowBytes(int blocks) const { return kBlockBytes * layers_ * blocks; }

  static double Micros(const std::function<void()>& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
        .count();
  }

  void Print(const char* verb, const char* way, const char* kind, int blocks,
             std::vector<double> own, std::vector<double> copy) const {
    std::sort(own.begin(), own.end());
    std::sort(copy.begin(), copy.end());
    const double us = own[own.size() / 2], copy_us = copy[copy.size() / 2];
    std::printf(
        "{\"name\": \"%s\", \"way\": \"%s\", \"profile\": \"%s\", \"device\": \"%s\", \"layers\": "
        "%d, "
        "\"chunk_tokens\": %d, \"blocks\": %d, \"calls\": %zu, \"us\": %.1f, \"us_p10\": %.1f, "
        "\"us_p90\": %.1f, \"gb_per_s\": %.0f, "
        "\"copy_us\": %.1f, \"copy_gb_per_s\": %.0f, \"of_copy_percent\": %.1f}\n",
        verb, way, kind, device_->info().name.c_str(), layers_, chunk_.tokens, blocks, own.size(),
        us, own[own.size() / 10], own[own.size() * 9 / 10], RowBytes(blocks) / us / 1000, copy_us,
        RowBytes(blocks) / copy_us / 1000, 100 * copy_us / us);
    std::fflush(stdout);
  }

  // Blocks of the engine in random order; extents anew for every kind.
  std::vector<DeviceBlock> BlocksOf(const Kind& kind, int blocks) {
    const uint64_t primary = layout_.Offsets(kind.primary, false).back();
    const uint64_t refinement = layout_.Offsets(PageKind::kRefinement, false).back();
    const auto align = [](uint64_t bytes) { return (bytes + 63) / 64 * 64; };
    const uint64_t each = align(primary) + (kind.refined ? align(refinement) : 0);
    extents_ = DeviceBuffer();
    extents_ = Value(DeviceBuffer::Allocate(each * blocks));
    const int per_block = chunk_.per_block();
    std::vector<int32_t> order(blocks * per_block);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    std::vector<DeviceBlock> list(blocks);
    for (int i = 0; i < blocks; ++i) {
      list[i].id.index = static_cast<uint32_t>(i + 1);
      list[i].kind = kind.primary;
      list[i].primary = extents_.as<std::byte>() + i * each;
      if (kind.refined) list[i].refinement = list[i].primary + align(primary);
      for (int n = 0; n < per_block; ++n) {
        list[i].chunks[n] =
            order[i * per_block + n] * static_cast<int32_t>(chunk_.bytes() / kChunkUnitBytes);
      }
    }
    return list;
  }

  DeviceRows RowsIn(const DeviceBuffer& buffer, std::vector<DeviceRows::Layer>* layers) const {
    for (int i = 0; i < layers_; ++i) {
      std::byte* begin = buffer.as<std::byte>() + i * kBlockBytes * most_blocks_;
      layers->push_back({begin, begin + chunk_.v_offset});
    }
    DeviceRows rows;
    rows.layers = *layers;
    rows.token_stride = chunk_.token_stride;
    rows.head_stride = chunk_.head_stride;
    rows.tokens_per_chunk = chunk_.tokens;
    return rows;
  }

  // Rows out of random codes of class 8.
  void FillRows(const std::vector<std::byte>& file) {
    const auto wide_set = Value(CodecSet::Parse(WithOneClass(file, *set_, 8)));
    const CoderTables wide = Value(CoderTables::Create(*wide_set, false));
    Random random(1);
    std::vector<uint8_t> codes(16 << 20);
    for (uint8_t& code : codes) code = Class8Code(static_cast<float>(random.Gaussian()));
    const DeviceBuffer pool = Value(DeviceBuffer::CopyOf(codes.data(), codes.size()));
    std::vector<int32_t> numbers(most_blocks_ * chunk_.per_block());
    std::iota(numbers.begin(), numbers.end(), 0);
    const DeviceBuffer blocks = Value(DeviceBuffer::CopyOf(numbers.data(), 4 * numbers.size()));
    std::vector<PagedRows> sets(layers_);
    std::vector<PageJob> jobs;
    for (int layer = 0; layer < layers_; ++layer) {
      sets[layer].k = rows_.as<std::byte>() + layer * kBlockBytes * most_blocks_;
      sets[layer].v = rows_.as<std::byte>() + layer * kBlockBytes * most_blocks_ + chunk_.v_offset;
      sets[layer].block_stride = static_cast<int64_t>(chunk_.bytes() / 2);
      sets[layer].token_stride = chunk_.token_stride;
      sets[layer].head_stride = chunk_.head_stride;
      sets[layer].block_tokens = chunk_.tokens;
      for (int i = 0; i < kHeads * most_blocks_; ++i) {
        PageJob job;
        job.primary = pool.as<std::byte>() +
                      16 * random.Below(static_cast<uint32_t>((codes.size() - 128 * kD) / 16));
        job.blocks = blocks.as<int32_t>() + i % most_blocks_ * chunk_.per_block();
        job.head = static_cast<int16_t>(i / most_blocks_);
        job.coder = layer * kHeads + job.head;
        job.rows = layer;
        jobs.push_back(job);
      }
    }
    const DeviceBuffer device_sets =
        Value(DeviceBuffer::CopyOf(sets.data(), sizeof(PagedRows) * sets.size()));
    const DeviceBuffer device_jobs =
        Value(DeviceBuffer::CopyOf(jobs.data(), sizeof(PageJob) * jobs.size()));
    PageJobs all;
    all.jobs = device_jobs.as<PageJob>();
    all.count = static_cast<int>(jobs.size());
    all.refined = false;
    Check(DecodePages({PageKind::kBase, kD, Domain::kRows}, &wide, all,
                      {device_sets.as<PagedRows>(), DType::kF16}, stream_));
    Check(cudaStreamSynchronize(stream_));
  }

  Device* const device_;
  const int layers_;
  const Chunk chunk_;
  const int most_blocks_;
  const std::shared_ptr<const CodecSet> set_;
  const SlabLayout layout_;
  const std::unique_ptr<const DeviceCodec> codec_;
  const std::unique_ptr<DeviceQueue> queue_;
  const DeviceBuffer rows_, decoded_;
  DeviceBuffer extents_;
  cudaStream_t stream_;
};

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  CLI::App app("Speed of whole slabs on a GPU");
  std::vector<int> layers = {80, 32}, blocks = {1, 16, 256}, chunk_tokens = {64, 16};
  fq::DeviceScheduler::Limits limits;
  int calls = 21;
  std::string tables;
  std::vector<std::string> profiles;
  app.add_option("--layers", layers)->check(CLI::Range(1, 128));
  app.add_option("--blocks", blocks)->check(CLI::Range(1, 4096));
  app.add_option("--profiles", profiles, "default: all");
  app.add_option("--calls", calls, "of each kind")->check(CLI::Range(1, 1000));
  app.add_option("--chunk-tokens", chunk_tokens)->check(CLI::IsMember({64, 32, 16, 8}));
  app.add_option("--batch-pages", limits.batch_pages, "of the scheduler")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--batches-of-a-call", limits.batches_of_a_call)->check(CLI::Range(1, 8));
  app.add_option("--tables", tables, "codec set whose tables are taken; default: random ones")
      ->check(CLI::ExistingFile);
  CLI11_PARSE(app, argc, argv);
  const std::unique_ptr<fq::Device> device = fq::Value(fq::OpenCudaDevice({}));
  limits.queues = std::max(limits.queues, limits.batches_of_a_call);
  const auto scheduler = fq::Value(fq::DeviceScheduler::Create(device.get(), limits));
  for (const int own : layers) {
    std::vector<std::byte> file = fq::BuildCodecSet(own, fq::kHeads, fq::kD, 3);
    if (!tables.empty()) {
      fq::TakeTables(*fq::Value(fq::CodecSet::Load(tables)), *fq::Value(fq::CodecSet::Parse(file)),
                     &file);
    }
    for (const int tokens : chunk_tokens) {
      fq::Bench bench(device.get(), own, fq::Chunk(tokens),
                      *std::max_element(blocks.begin(), blocks.end()), file);
      for (const fq::Kind& kind : fq::kKinds) {
        if (!profiles.empty() && std::count(profiles.begin(), profiles.end(), kind.name) == 0) {
          continue;
        }
        for (const int count : blocks) {
          bench.Measure(kind, count, calls, nullptr);
          if (tokens != 64) bench.Measure(kind, count, calls, scheduler.get());
        }
      }
    }
  }
}
