// Speed of attention over encoded pages on a GPU (KERNELS.md, protocol): CUDA graphs of one call
// for each of several caches whose bytes are more than five times the L2, pages in random order.
// Everything that is compared takes turns, a replay each; prints one JSON object a line.
// tests/bench/attend_bench.py lets the rivals of other libraries take their turns too.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/codec/float_convert.h"
#include "kernels/page_bytes.h"
#include "tests/bench/read_bytes.h"
#include "tests/testing/attend_case.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

constexpr int kWarmUp = 3;
constexpr double kColdBytes = 400e6;

struct Settings {
  std::string cache_folder;
  int head_size = 128, kv_heads = 8, query_heads = 64;
  int blocks = 0, spare_blocks = 0, rounds = 21;
  std::vector<std::string> pages = {"one",   "mixed",      "one-refined",
                                    "exact", "read-exact", "read-one"},
                           shapes = {"1x32768", "1x131072", "8x32768", "32x8192", "64x32768"};
  bool in_step = false;
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
std::vector<CodecProfile> Profiles(const std::string& name, const Settings& settings) {
  static const char* const kMixed[8][2] = {{"84422110", "42222110"}, {"84422110", "00000000"},
                                           {"44444444", "42222110"}, {"42221100", "44422211"},
                                           {"22111100", "21110000"}, {"44222110", "84422211"},
                                           {"44422211", "22221111"}, {"84442211", "42211100"}};
  static const char* const kRefinement = "22222222";
  std::vector<CodecProfile> profiles;
  for (int head = 0; head < settings.kv_heads; ++head) {
    std::string k = "84222110", v = "42222110";
    if (name.size() == 2 && name[0] == 'm') {  // m0 .. m7: one of those for every head
      k = kMixed[name[1] - '0'][0];
      v = kMixed[name[1] - '0'][1];
    } else if (name == "mixed") {
      k = kMixed[head % 8][0];
      v = kMixed[head % 8][1];
    } else if (name == "two") {
      k = v = "22222222";
    }
    CodecProfile p = ProfileOf(k, v, kRefinement, kRefinement);
    for (auto* side : {&p.k, &p.v, &p.k_refinement, &p.v_refinement}) {
      std::vector<uint8_t> sized;
      for (int i = 0; i < settings.head_size / 8; ++i) {
        sized.push_back((*side)[i * 128 / settings.head_size]);
      }
      *side = sized;
    }
    profiles.push_back(p);
  }
  return profiles;
}

// A CUDA graph of one call for each cache, and how long its replays took, in microseconds a call.
class Graph {
 public:
  Graph(int calls, cudaStream_t stream, const std::function<void(int)>& call)
      : calls_(calls), stream_(stream) {
    cudaGraph_t graph;
    Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < calls; ++i) call(i);
    Check(cudaStreamEndCapture(stream, &graph), "capture");
    Check(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    Check(cudaEventCreate(&begin_), "cudaEventCreate");
    Check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Graph() {
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void Replay() {
    Check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    Check(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
    Check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    Check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    times_.push_back(1000.0 * ms / calls_);
  }

  // Of the replays after the first few; share 0.5 = the median.
  double Microseconds(double share) const {
    std::vector<double> times(times_.begin() + kWarmUp, times_.end());
    std::sort(times.begin(), times.end());
    return times[static_cast<size_t>(share * static_cast<double>(times.size()))];
  }

 private:
  const int calls_;
  const cudaStream_t stream_;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::vector<double> times_;
};

// Caches of one shape in one pool: slabs of random bytes, and a page table for each.
class Caches {
 public:
  // `slab_bytes` of the kinds of a block: primary, and refinement or 0. `mask` is put on the bytes.
  Caches(const size_t (&slab_bytes)[2], int pages, int count, uint64_t mask)
      : pages_(pages), count_(count) {
    const size_t slabs = static_cast<size_t>(pages) * count;
    block_bytes_ = slab_bytes[0] + slab_bytes[1];
    pool_ = Value(DeviceBuffer::Allocate(slabs * block_bytes_));
    FillPool(mask);
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
  int count() const { return count_; }
  size_t CacheBytes() const { return static_cast<size_t>(pages_) * block_bytes_; }

 private:
  void FillPool(uint64_t mask) {
    std::vector<uint64_t> chunk(8 << 20);
    Random random(17);
    for (uint64_t& word : chunk) word = random.Next() & mask;
    const size_t chunk_bytes = std::min(pool_.bytes(), chunk.size() * 8);
    Check(cudaMemcpy(pool_.as<void>(), chunk.data(), chunk_bytes, cudaMemcpyHostToDevice),
          "cudaMemcpy");
    for (size_t at = chunk_bytes; at < pool_.bytes(); at += chunk_bytes) {
      const size_t bytes = std::min(pool_.bytes() - at, chunk_bytes);
      Check(
          cudaMemcpy(pool_.as<std::byte>() + at, pool_.as<void>(), bytes, cudaMemcpyDeviceToDevice),
          "cudaMemcpy");
    }
  }

  int pages_, count_;
  size_t block_bytes_ = 0;
  DeviceBuffer pool_, tables_[2];
};

// One way of keeping pages, compiled once for all shapes: "one", "mixed" and other profiles, with
// "-refined" behind it base and refinement; "exact" = FP16 rows.
class Kind {
 public:
  Kind(const Settings& settings, const std::string& name)
      : settings_(settings), name_(name), exact_(name == "exact") {
    const size_t dash = name.find("-refined");
    refined_ = dash != std::string::npos;
    set_ = MakeCodecSet(settings.head_size, Profiles(name.substr(0, dash), settings));
    tables_ = std::make_unique<TablesDevice>(Value(TablesDevice::Create(*set_)));
    layer_ = DescribeLayer(*set_, {0, 0, settings.kv_heads, DType::kF16}, 0, refined_,
                           tables_->Record(0, 0));
    layer_.variant.replicated_tables = settings.replicated_tables;
    kernel_ = Value(AttendKernel::Build(layer_.variant, settings.cache_folder));
  }

  const Settings& settings() const { return settings_; }
  const std::string& name() const { return name_; }
  const AttendKernel& kernel() const { return *kernel_; }

  AttendRun::Kind run() const {
    return exact_ ? AttendRun::kExact : refined_ ? AttendRun::kRefined : AttendRun::kBase;
  }
  AttendPlan Plan(const std::vector<AttendSequence>& sequences) const {
    return PlanAttend({settings_.blocks, settings_.query_heads / settings_.kv_heads,
                       settings_.head_size, settings_.spare_blocks},
                      layer_.heads, sequences);
  }
  // FP16 rows must be numbers: these are between -2 and 2. Any bytes are codes.
  std::unique_ptr<Caches> MakeCaches(int pages) const {
    size_t bytes[2] = {0, 0};
    for (const AttendHead& head : layer_.heads) {
      bytes[0] += exact_ ? head.exact_bytes : head.base_bytes;
      bytes[1] += refined_ ? head.refinement_bytes : 0;
    }
    const double cache = static_cast<double>(pages) * static_cast<double>(bytes[0] + bytes[1]);
    const int count = std::max(2, static_cast<int>(std::ceil(kColdBytes / cache)));
    return std::make_unique<Caches>(bytes, pages, count,
                                    exact_ ? 0xBFFFBFFFBFFFBFFFull : ~uint64_t{0});
  }

 private:
  const Settings settings_;
  const std::string name_;
  const bool exact_;
  bool refined_ = false;
  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<TablesDevice> tables_;
  AttendLayer layer_;
  std::unique_ptr<const AttendKernel> kernel_;
};

// What a figure is of.
struct Timed {
  std::string pages, steps;
  double bytes;  // that a call must read
  std::unique_ptr<Graph> graph;
};

// A kind of pages at one shape: everything that its graphs use.
class Scene {
 public:
  Scene(const Kind& kind, const std::vector<int>& lengths, cudaStream_t stream)
      : kind_(kind), stream_(stream) {
    const Settings& settings = kind.settings();
    std::vector<AttendSequence> sequences;
    int pages = 0;
    for (int tokens : lengths) {
      AttendSequence sequence;
      sequence.runs.push_back({kind.run(), pages, 0, tokens});
      sequence.first_query = static_cast<int>(sequences.size());
      sequences.push_back(sequence);
      pages += (tokens + 63) / 64;
    }
    workspace_ = Value(AttendWorkspace::Create(kind.Plan(sequences), settings.head_size));
    for (AttendSequence& sequence : sequences) sequence.runs[0].kind = AttendRun::kExact;
    uncoded_ = Value(AttendWorkspace::Create(kind.Plan(sequences), settings.head_size));
    MakeRope(static_cast<int>(lengths.size()));
    caches_ = kind.MakeCaches(pages);
    const size_t rows = lengths.size() * settings.query_heads;
    q_ = RandomQueries(rows * settings.head_size);
    out_ = Value(DeviceBuffer::Allocate(2 * rows * settings.head_size));
    lse_ = Value(DeviceBuffer::Allocate(4 * rows));
    Check(Call(0, kAttendAllSteps));  // later calls may find the queries prepared
  }

  // Behind RoPE and append, which prepare the queries or (a plan without codes) only rotate them.
  void AddAttend(std::vector<Timed>* all) {
    static constexpr std::pair<const char*, int> kSteps[] = {
        {"q+pages+merge", kAttendAllSteps},
        {"pages+merge", kAttendPages | kAttendMerge},
        {"pages", kAttendPages}};
    for (const auto& [name, steps] : kSteps) {
      Add(
          name, [this, steps = steps](int cache) { Check(Call(cache, steps)); }, all);
    }
    Add(
        "rope+q+pages+merge",
        [this](int cache) {
          Check(Rotate(workspace_));
          Check(Call(cache, kAttendBehindRope));
        },
        all);
    Add(
        "rope+pages+merge",
        [this](int cache) {
          Check(Rotate(uncoded_));
          Check(Call(cache, kAttendPages | kAttendMerge));
        },
        all);
  }

  // Reads of the same bytes, one after the other.
  void AddRead(std::vector<Timed>* all) {
    Add(
        "read",
        [this](int cache) {
          const size_t bytes = caches_->CacheBytes();
          Check(
              LaunchReadBytes(caches_->pool() + cache * bytes, bytes, lse_.as<uint32_t>(), stream_),
              "read");
        },
        all);
  }

 private:
  void Add(const char* steps, const std::function<void(int)>& call, std::vector<Timed>* all) {
    all->push_back({kind_.name(), steps, static_cast<double>(caches_->CacheBytes()),
                    std::make_unique<Graph>(caches_->count(), stream_, call)});
  }
  absl::Status Call(int cache, int steps) {
    const AttendInputs inputs = {
        q_.as<void>(), caches_->pool(), caches_->Table(cache, 0), caches_->Table(cache, 1),
        Scale(),       out_.as<void>(), lse_.as<float>()};
    return LaunchAttend(kind_.kernel(), workspace_, inputs, stream_, steps);
  }
  // A step of a token for each sequence, each at another position.
  void MakeRope(int tokens) {
    const Settings& settings = kind_.settings();
    constexpr int kPositions = 8192, kBlockTokens = 16;
    const int row = settings.kv_heads * settings.head_size;
    std::vector<int64_t> places;
    for (int i = 0; i < tokens; ++i) places.push_back(int64_t{i} * kPositions / tokens);
    places_ = Value(DeviceBuffer::CopyOf(places.data(), places.size() * sizeof(int64_t)));
    cos_sin_ = Angles(kPositions, settings.head_size);
    new_rows_ = RandomQueries(2 * size_t(tokens) * row);
    kept_rows_ = Value(DeviceBuffer::Allocate(2 * 2 * size_t{kPositions} * row));
    rope_.tokens = tokens;
    rope_.query_heads = settings.query_heads;
    rope_.kv_heads = settings.kv_heads;
    rope_.k = new_rows_.as<uint16_t>();
    rope_.v = new_rows_.as<uint16_t>() + size_t(tokens) * row;
    rope_.q_stride = settings.query_heads * settings.head_size;
    rope_.k_stride = rope_.v_stride = row;
    rope_.cos_sin = cos_sin_.as<void>();
    rope_.positions = rope_.slots = places_.as<int64_t>();
    rope_.key_cache = kept_rows_.as<uint16_t>();
    rope_.value_cache = kept_rows_.as<uint16_t>() + size_t{kPositions} * row;
    rope_.block_tokens = kBlockTokens;
    rope_.token_stride = row;
    rope_.block_stride = int64_t{kBlockTokens} * row;
    rope_.head_stride = settings.head_size;
  }
  // [positions][d]: cosines, then sines.
  static DeviceBuffer Angles(int positions, int head_size) {
    std::vector<uint16_t> all(size_t(positions) * head_size);
    for (size_t i = 0; i < all.size(); ++i) {
      const int half = head_size / 2, c = static_cast<int>(i % head_size);
      const double angle =
          static_cast<double>(i / head_size) * std::exp2(-13.0 * (c % half) / half);
      all[i] = FloatToHalf(static_cast<float>(c < half ? std::cos(angle) : std::sin(angle)));
    }
    return Value(DeviceBuffer::CopyOf(all.data(), 2 * all.size()));
  }
  absl::Status Rotate(const AttendWorkspace& workspace) {
    rope_.q = q_.as<void>();
    rope_.rotated_q = out_.as<void>();  // q itself stays what the other steps take
    return LaunchRope(kind_.kernel(), workspace, rope_, Scale(), stream_);
  }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(kind_.settings().head_size)); }
  static DeviceBuffer RandomQueries(size_t count) {
    std::vector<uint16_t> q(count);
    Random random(23);
    for (uint16_t& element : q) element = FloatToHalf(static_cast<float>(random.Gaussian()));
    return Value(DeviceBuffer::CopyOf(q.data(), 2 * q.size()));
  }

  const Kind& kind_;
  const cudaStream_t stream_;
  AttendWorkspace workspace_, uncoded_;  // the same sequences, as if their pages were exact
  RopeInputs rope_;
  DeviceBuffer places_, cos_sin_, new_rows_, kept_rows_;
  std::unique_ptr<Caches> caches_;
  DeviceBuffer q_, out_, lse_;
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

class Bench {
 public:
  explicit Bench(Settings settings) : settings_(std::move(settings)) {
    if (settings_.blocks == 0) {
      Check(cudaDeviceGetAttribute(&settings_.blocks, cudaDevAttrMultiProcessorCount, 0),
            "cudaDeviceGetAttribute");
      settings_.blocks = AttendBlocks(settings_.blocks);
      settings_.spare_blocks = kSpareBlocks;
    }
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    for (const std::string& name : settings_.pages) {
      if (!IsRead(name)) kinds_.push_back(std::make_unique<Kind>(settings_, name));
    }
  }

  void RunShape(const std::string& shape) {
    const std::vector<int> lengths = LengthsOf(shape);
    std::vector<std::unique_ptr<Scene>> scenes;
    std::vector<Timed> all;
    for (const auto& kind : kinds_) {
      scenes.push_back(std::make_unique<Scene>(*kind, lengths, stream_));
      scenes.back()->AddAttend(&all);
      const auto& names = settings_.pages;
      if (std::count(names.begin(), names.end(), "read-" + kind->name()) > 0) {
        scenes.back()->AddRead(&all);
      }
    }
    for (int round = 0; round < settings_.rounds + kWarmUp; ++round) {
      if (settings_.in_step) AwaitTurn();
      for (Timed& timed : all) timed.graph->Replay();
    }
    if (settings_.in_step) AwaitTurn();
    for (const Timed& timed : all) Print(shape, timed);
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  static bool IsRead(const std::string& name) { return name.rfind("read-", 0) == 0; }

  // An empty line says that it is the other side's turn; one from it, that it is ours.
  static void AwaitTurn() {
    std::printf("\n");
    std::fflush(stdout);
    std::string line;
    FQ_CHECK(static_cast<bool>(std::getline(std::cin, line)));
  }

  void Print(const std::string& shape, const Timed& timed) const {
    const double us = timed.graph->Microseconds(0.5);
    std::printf(
        "{\"kernel\": \"%s\", \"pages\": \"%s\", \"shape\": \"%s\", \"heads\": \"%d/%d/%d\", "
        "\"steps\": \"%s\", \"us\": %.2f, \"p10\": %.2f, \"p90\": %.2f, \"gb_per_s\": %.0f, "
        "\"replicated_tables\": %d}\n",
        timed.steps == "read" ? "read" : "attend", timed.pages.c_str(), shape.c_str(),
        settings_.query_heads, settings_.kv_heads, settings_.head_size, timed.steps.c_str(), us,
        timed.graph->Microseconds(0.1), timed.graph->Microseconds(0.9), timed.bytes / us / 1e3,
        settings_.replicated_tables);
  }

  Settings settings_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  fq::Settings settings;
  CLI::App app("Speed of attention over encoded pages on a GPU");
  app.add_option("--cache-folder", settings.cache_folder, "keeps compiled kernels");
  app.add_option("--head-size", settings.head_size);
  app.add_option("--kv-heads", settings.kv_heads);
  app.add_option("--query-heads", settings.query_heads);
  app.add_option("--blocks", settings.blocks, "thread blocks; 0 = multiprocessors");
  app.add_option("--pages", settings.pages,
                 "one, mixed, two, m0 .. m7, each also NAME-refined; exact; read-NAME");
  app.add_option("--shapes", settings.shapes, "BxN, ragged, lognormal");
  app.add_option("--rounds", settings.rounds, "replays of each graph");
  app.add_option("--replicated-tables", settings.replicated_tables,
                 "at most, of 3: as on a GPU with less shared memory");
  app.add_flag("--in-step", settings.in_step, "before each round, wait for a line of input");
  CLI11_PARSE(app, argc, argv);
  fq::Bench bench(settings);
  for (const std::string& shape : settings.shapes) bench.RunShape(shape);
  return 0;
}
