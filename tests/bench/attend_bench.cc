// Speed of attention over encoded pages on a GPU (KERNELS.md, protocol): CUDA graphs of one call
// for each of several caches whose bytes are more than five times the L2, pages in random order,
// medians of 21 replays. Prints one JSON object a line; tests/bench/attend_bench.py adds the
// rivals.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/codec/float_convert.h"
#include "kernels/page_bytes.h"
#include "tests/testing/attend_case.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

constexpr int kKvHeads = 8, kGroup = 8, kReplays = 21;
constexpr double kColdBytes = 400e6;

struct Settings {
  std::string cache_folder;
  int head_size = 128;
  int blocks = 0;
  std::vector<std::string> sets = {"one", "mixed"},
                           shapes = {"1x32768", "1x131072", "8x32768", "32x8192", "64x32768"};
  bool refined = false;
  int replicated_tables = kMostReplicated;
};

void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  FQ_CHECK(error == cudaSuccess);
}
template <typename T>
T Value(absl::StatusOr<T> value) {
  if (!value.ok()) std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  FQ_CHECK(value.ok());
  return *std::move(value);
}
void Check(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  FQ_CHECK(status.ok());
}

// Classes at head size 128, in pairs of groups: 2.125 bits a value for every head, or eight heads
// of 1664 to 5888 bytes a page.
std::vector<CodecProfile> Profiles(const std::string& name, int head_size) {
  static const char* const kMixed[kKvHeads][2] = {
      {"84422110", "42222110"}, {"84422110", "00000000"}, {"44444444", "42222110"},
      {"42221100", "44422211"}, {"22111100", "21110000"}, {"44222110", "84422211"},
      {"44422211", "22221111"}, {"84442211", "42211100"}};
  static const char* const kRefinement = "22222222";
  std::vector<CodecProfile> profiles;
  for (int head = 0; head < kKvHeads; ++head) {
    std::string k = "84222110", v = "42222110";
    if (name.size() == 2 && name[0] == 'm') {  // m0 .. m7: one of those for every head
      k = kMixed[name[1] - '0'][0];
      v = kMixed[name[1] - '0'][1];
    } else if (name == "mixed") {
      k = kMixed[head][0];
      v = kMixed[head][1];
    } else if (name == "two") {
      k = v = "22222222";
    }
    CodecProfile p = ProfileOf(k, v, kRefinement, kRefinement);
    for (auto* side : {&p.k, &p.v, &p.k_refinement, &p.v_refinement}) {
      std::vector<uint8_t> sized;
      for (int i = 0; i < head_size / 8; ++i) sized.push_back((*side)[i * 128 / head_size]);
      *side = sized;
    }
    profiles.push_back(p);
  }
  return profiles;
}

// Median, p10 and p90 of a graph's replays, in microseconds for each of its calls.
struct Times {
  double median, p10, p90;
};
Times TimeGraph(cudaGraphExec_t graph, int calls, cudaStream_t stream) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "cudaEventCreate");
  Check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> times;
  for (int i = 0; i < kReplays + 3; ++i) {
    Check(cudaEventRecord(begin, stream), "cudaEventRecord");
    Check(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
    Check(cudaEventRecord(end, stream), "cudaEventRecord");
    Check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= 3) times.push_back(1000.0 * ms / calls);
  }
  Check(cudaEventDestroy(begin), "cudaEventDestroy");
  Check(cudaEventDestroy(end), "cudaEventDestroy");
  std::sort(times.begin(), times.end());
  return {times[kReplays / 2], times[kReplays / 10], times[kReplays * 9 / 10]};
}

// Caches of one shape in one pool: slabs of random bytes, and a page table for each.
class Caches {
 public:
  // `slab_bytes` of the kinds of a block: base, and refinement or 0.
  Caches(const size_t (&slab_bytes)[2], int pages, int count) : pages_(pages) {
    const size_t slabs = static_cast<size_t>(pages) * count;
    block_bytes_ = slab_bytes[0] + slab_bytes[1];
    pool_ = Value(DeviceBuffer::Allocate(slabs * block_bytes_));
    FillPool();
    std::vector<uint32_t> order(slabs), tables[2];
    for (size_t i = 0; i < slabs; ++i) order[i] = static_cast<uint32_t>(i);
    Random random(5);
    for (size_t i = slabs; i > 1; --i) {
      std::swap(order[i - 1], order[random.Below(static_cast<uint32_t>(i))]);
    }
    for (uint32_t slab : order) {
      tables[0].push_back(static_cast<uint32_t>(slab * block_bytes_ / 64));
      tables[1].push_back(static_cast<uint32_t>((slab * block_bytes_ + slab_bytes[0]) / 64));
    }
    for (int part : {0, 1}) {
      tables_[part] = Value(DeviceBuffer::CopyOf(tables[part].data(), 4 * slabs));
    }
  }

  const std::byte* pool() const { return pool_.as<std::byte>(); }
  const uint32_t* Table(int cache, int part) const {
    return tables_[part].as<uint32_t>() + static_cast<size_t>(cache) * pages_;
  }
  double CacheBytes() const { return static_cast<double>(pages_) * block_bytes_; }

 private:
  void FillPool() {
    std::vector<uint64_t> chunk(8 << 20);
    Random random(17);
    for (uint64_t& word : chunk) word = random.Next();
    for (size_t at = 0; at < pool_.bytes(); at += chunk.size() * 8) {
      const size_t bytes = std::min(pool_.bytes() - at, chunk.size() * 8);
      Check(cudaMemcpy(pool_.as<std::byte>() + at, chunk.data(), bytes, cudaMemcpyHostToDevice),
            "cudaMemcpy");
    }
  }

  int pages_;
  size_t block_bytes_ = 0;
  DeviceBuffer pool_, tables_[2];
};

class Bench {
 public:
  Bench(const Settings& settings, std::string set_name)
      : settings_(settings),
        set_name_(std::move(set_name)),
        set_(MakeCodecSet(settings.head_size, Profiles(set_name_, settings.head_size))),
        tables_(Value(TablesDevice::Create(*set_))),
        layer_(DescribeLayer(*set_, {0, 0, kKvHeads, DType::kF16}, 0, settings.refined,
                             tables_.Record(0, 0))) {
    layer_.variant.replicated_tables = settings.replicated_tables;
    kernel_ = Value(AttendKernel::Build(layer_.variant, settings.cache_folder));
    if (settings_.blocks == 0) {
      Check(cudaDeviceGetAttribute(&settings_.blocks, cudaDevAttrMultiProcessorCount, 0),
            "cudaDeviceGetAttribute");
      settings_.blocks = AttendBlocks(settings_.blocks);
    }
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }

  void RunShape(const std::string& name, const std::vector<int>& lengths) {
    std::vector<AttendSequence> sequences;
    int pages = 0;
    for (int tokens : lengths) {
      AttendSequence sequence;
      sequence.runs.push_back(
          {settings_.refined ? AttendRun::kRefined : AttendRun::kBase, pages, 0, tokens});
      sequence.first_query = static_cast<int>(sequences.size());
      sequences.push_back(sequence);
      pages += (tokens + 63) / 64;
    }
    const AttendPlan plan = PlanAttend({settings_.blocks, kGroup}, layer_.heads, sequences);
    AttendWorkspace workspace = Value(AttendWorkspace::Create(plan, settings_.head_size));
    size_t slab_bytes[2] = {0, 0};
    for (int h = 0; h < kKvHeads; ++h) {
      slab_bytes[0] += layer_.heads[h].base_bytes;
      slab_bytes[1] += settings_.refined ? layer_.heads[h].refinement_bytes : 0;
    }
    const int count = std::max(
        2, static_cast<int>(std::ceil(kColdBytes / (static_cast<double>(pages) * slab_bytes[0]))));
    const Caches caches(slab_bytes, pages, count);
    const size_t rows = lengths.size() * kKvHeads * kGroup;
    const DeviceBuffer q = RandomQueries(rows),
                       out = Value(DeviceBuffer::Allocate(2 * rows * settings_.head_size)),
                       lse = Value(DeviceBuffer::Allocate(4 * rows));
    const double bytes = caches.CacheBytes();
    for (int steps : {kAttendPages | kAttendMerge, int{kAttendAllSteps}, int{kAttendPages}}) {
      cudaGraph_t graph;
      cudaGraphExec_t executable;
      Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
      for (int i = 0; i < count; ++i) {
        const AttendInputs inputs = {q.as<void>(),
                                     caches.pool(),
                                     caches.Table(i, 0),
                                     caches.Table(i, 1),
                                     1.0f / std::sqrt(static_cast<float>(settings_.head_size)),
                                     out.as<void>(),
                                     lse.as<float>()};
        Check(LaunchAttend(*kernel_, workspace, inputs, stream_, steps));
      }
      Check(cudaStreamEndCapture(stream_, &graph), "capture");
      Check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
      const Times times = TimeGraph(executable, count, stream_);
      std::printf(
          "{\"kernel\": \"attend\", \"profiles\": \"%s\", \"refined\": %s, \"head_size\": %d, "
          "\"shape\": \"%s\", "
          "\"steps\": \"%s\", \"us\": %.2f, \"p10\": %.2f, \"p90\": %.2f, \"gb_per_s\": %.0f, "
          "\"replicated_tables\": %d, \"blocks\": %d, \"slots\": %d, \"caches\": %d}\n",
          set_name_.c_str(), settings_.refined ? "true" : "false", settings_.head_size,
          name.c_str(),
          steps == kAttendAllSteps ? "q+pages+merge"
          : steps == kAttendPages  ? "pages"
                                   : "pages+merge",
          times.median, times.p10, times.p90, bytes / times.median / 1e3,
          kernel_->replicated_tables(), plan.blocks, plan.slots, count);
      std::fflush(stdout);
      Check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
      Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
  }

 private:
  DeviceBuffer RandomQueries(size_t rows) const {
    std::vector<uint16_t> q(rows * settings_.head_size);
    Random random(23);
    for (uint16_t& element : q) element = FloatToHalf(static_cast<float>(random.Gaussian()));
    return Value(DeviceBuffer::CopyOf(q.data(), 2 * q.size()));
  }

  Settings settings_;
  std::string set_name_;
  std::shared_ptr<const CodecSet> set_;
  TablesDevice tables_;
  AttendLayer layer_;
  std::unique_ptr<const AttendKernel> kernel_;
  cudaStream_t stream_ = nullptr;
};

// "8x32768": eight sequences of that length. "ragged": one of 128K beside 63 of 2K.
std::vector<int> LengthsOf(const std::string& shape) {
  if (shape == "ragged") {
    std::vector<int> lengths(64, 2048);
    lengths[20] = 131072;
    return lengths;
  }
  if (shape == "lognormal") {  // 32 of about 8K, the same tokens in all as 32x8192
    std::vector<int> lengths;
    Random random(3);
    double sum = 0;
    std::vector<double> weights;
    for (int i = 0; i < 32; ++i) sum += weights.emplace_back(std::exp(random.Gaussian()));
    for (double w : weights) lengths.push_back(std::max(1, static_cast<int>(32 * 8192 * w / sum)));
    return lengths;
  }
  const size_t x = shape.find('x');
  return std::vector<int>(std::stoi(shape.substr(0, x)), std::stoi(shape.substr(x + 1)));
}

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  fq::Settings settings;
  CLI::App app("Speed of attention over encoded pages on a GPU");
  app.add_option("--cache-folder", settings.cache_folder, "keeps compiled kernels");
  app.add_option("--head-size", settings.head_size);
  app.add_option("--blocks", settings.blocks, "thread blocks; 0 = multiprocessors");
  app.add_option("--profiles", settings.sets, "one, mixed, two");
  app.add_option("--shapes", settings.shapes, "BxN, ragged, lognormal");
  app.add_option("--replicated-tables", settings.replicated_tables,
                 "at most, of 3: as on a GPU with less shared memory");
  app.add_flag("--refined", settings.refined, "near-lossless: base and refinement");
  CLI11_PARSE(app, argc, argv);
  for (const std::string& name : settings.sets) {
    fq::Bench bench(settings, name);
    for (const std::string& shape : settings.shapes) bench.RunShape(shape, fq::LengthsOf(shape));
  }
  return 0;
}
