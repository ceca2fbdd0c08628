// Peer links by NCCL, on GPUs: OneGpu tests need one, TwoGpus tests two. The worker is a process of
// its own (tests/testing/nccl_worker.h). --library says which libnccl.
#include "server/peers/nccl_comm.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/cuda_device.h"
#include "server/peers/peer_link.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/nccl_worker.h"

namespace fq {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

std::string library = "libnccl.so.2";
int ctas = 24;

double Since(Clock::time_point begin) { return Milliseconds(Clock::now() - begin).count(); }

bool Within(std::chrono::milliseconds limit, const std::function<bool()>& condition) {
  const Clock::time_point end = Clock::now() + limit;
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

uint64_t FreeBytes() {
  size_t free = 0, total = 0;
  Check(cudaSetDevice(0));
  Check(cudaMemGetInfo(&free, &total));
  return free;
}

// The node's side: GPU 0 and its windows.
class NcclTest : public testing::Test {
 protected:
  static constexpr uint64_t kWindow = uint64_t{1} << 30;

  NcclTest() : nccl_(Value(OpenNccl({library, 0, ctas}))) {
    CudaDeviceOptions options;
    device_ = Value(OpenCudaDevice(options));
    queue_ = Value(device_->CreateQueue(true));
  }

  std::vector<uint64_t> SumsOf(const std::vector<DeviceRegion>& regions) {
    std::vector<uint64_t> sums(regions.size());
    Check(queue_->Sum(regions, absl::MakeSpan(sums)));
    Check(queue_->Finish());
    return sums;
  }

  const std::unique_ptr<PeerTransport> nccl_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceQueue> queue_;
};

// The node's window and link, and the worker's process.
struct Pair {
  explicit Pair(PeerTransport& nccl, uint64_t window_bytes, std::chrono::milliseconds timeout,
                int worker_gpu = 1)
      : bytes(window_bytes), worker(library, worker_gpu, window_bytes, ctas) {
    Check(cudaSetDevice(0));
    void* memory = nullptr;
    Check(cudaMalloc(&memory, bytes));
    window = static_cast<std::byte*>(memory);
    const PeerId down = Value(nccl.MakeId()), up = Value(nccl.MakeId());
    PeerLink::Parts parts;
    parts.down = Value(nccl.Join(down, PeerDirection::kSend));
    parts.up = Value(nccl.Join(up, PeerDirection::kReceive));
    parts.hello = {window, 256};
    parts.timeout = timeout;
    parts.moved = [this](PeerDirection direction, uint64_t) {
      ++(direction == PeerDirection::kSend ? sent : received);
    };
    parts.broken = [this](PeerLinkEnd end, const std::string& why) {
      const std::lock_guard lock(mutex);
      ended = absl::StrCat(PeerLinkEndName(end), ": ", why);
    };
    link = std::make_unique<PeerLink>(std::move(parts));
    join = absl::StrCat("join ", ToHex(down), " ", ToHex(up));
  }
  ~Pair() {
    link.reset();
    Check(cudaFree(window));
  }
  std::string Ended() {
    const std::lock_guard lock(mutex);
    return ended;
  }

  const uint64_t bytes;
  NcclWorker worker;
  std::byte* window = nullptr;
  std::unique_ptr<PeerLink> link;
  std::string join;
  std::atomic<uint64_t> sent{0}, received{0};
  std::mutex mutex;
  std::string ended;
};

using OneGpu = NcclTest;
using TwoGpus = NcclTest;

// What is sent to the same rank arrives on the same GPU.
TEST_F(OneGpu, SelfSend_OnOneRank_BringsTheSameBytes) {
  const auto library_of = Value(NcclLibrary::Open(library));
  Check(cudaSetDevice(0));
  void* memory = nullptr;
  Check(cudaMalloc(&memory, 2 << 20));
  auto* const from = static_cast<std::byte*>(memory);
  std::vector<uint64_t> host((1 << 20) / 8);
  std::mt19937_64 random(7);
  for (uint64_t& word : host) word = random();
  Check(cudaMemcpy(from, host.data(), 1 << 20, cudaMemcpyHostToDevice));
  Check(cudaMemset(from + (1 << 20), 0, 1 << 20));
  NcclUniqueId id;
  Check(library_of->Check(library_of->GetUniqueId(&id), "id"));
  NcclConfig config;
  config.blocking = 0;
  NcclCommHandle comm = nullptr;
  Check(library_of->Check(library_of->CommInitRankConfig(&comm, 1, id, 0, &config), "init"));
  const auto settled = [&] {
    int state = 0;
    Check(library_of->Check(library_of->CommGetAsyncError(comm, &state), "state"));
    Check(library_of->Check(state, "async"));
    return state == kNcclSuccess;
  };
  ASSERT_TRUE(Within(std::chrono::seconds(30), settled));
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Check(library_of->Check(library_of->GroupStart(), "group"));
  Check(library_of->Check(library_of->Send(from, 1 << 20, kNcclUint8, 0, comm, stream), "send"));
  Check(library_of->Check(library_of->Recv(from + (1 << 20), 1 << 20, kNcclUint8, 0, comm, stream),
                          "recv"));
  Check(library_of->Check(library_of->GroupEnd(), "group end"));
  ASSERT_TRUE(Within(std::chrono::seconds(30), settled));
  Check(cudaStreamSynchronize(stream));
  const auto sums = SumsOf({{from, 1 << 20}, {from + (1 << 20), 1 << 20}});
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(library_of->CommAbort(comm), kNcclSuccess);
  Check(cudaStreamDestroy(stream));
  Check(cudaFree(memory));
}

// Nobody comes: the link breaks in its time and gives back the memory it took.
TEST_F(OneGpu, WorkerThatNeverComes_BreaksAfterTheTimeout) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, 2 << 20));
  uint64_t before = 0;
  for (int round = 0; round < 6; ++round) {
    std::atomic<bool> broken{false};
    PeerLink::Parts parts;
    parts.down = Value(nccl_->Join(Value(nccl_->MakeId()), PeerDirection::kSend));
    parts.up = Value(nccl_->Join(Value(nccl_->MakeId()), PeerDirection::kReceive));
    parts.hello = {static_cast<std::byte*>(memory), 256};
    parts.timeout = std::chrono::milliseconds(500);
    parts.moved = [](PeerDirection, uint64_t) {};
    parts.broken = [&](PeerLinkEnd end, const std::string& why) {
      std::printf("  %s: %s\n", PeerLinkEndName(end), why.c_str());
      broken = end == PeerLinkEnd::kTimeout;
    };
    const Clock::time_point begin = Clock::now();
    PeerLink link(std::move(parts));
    ASSERT_TRUE(Within(std::chrono::seconds(20), [&] { return link.ended(); }));
    std::printf("  ended after %.0f ms; free now: %.1f MiB\n", Since(begin),
                static_cast<double>(FreeBytes()) / (1 << 20));
    EXPECT_TRUE(broken);
    if (round == 1) before = FreeBytes();  // what NCCL keeps for good, it has by now
  }
  // NCCL 2.28.9 keeps 2 MiB of every two communicators that nobody joined (PeerLinks counts them).
  EXPECT_GE(FreeBytes() + 4 * (uint64_t{2} << 20), before);
  Check(cudaFree(memory));
}

// Sizes from 1 MiB to 1 GiB, both directions, compared by their sums; and back-to-back speeds
// beside those of a plain loop.
TEST_F(TwoGpus, Transfers_ArriveWhole) {
  const uint64_t before = FreeBytes();
  Clock::time_point begin = Clock::now();
  Pair pair(*nccl_, kWindow, std::chrono::seconds(20));
  std::printf("  worker and window: %.0f ms\n", Since(begin));
  begin = Clock::now();
  const std::string took = pair.worker.Ask(pair.join);
  std::printf(
      "  joined, operation 0 both ways: worker %s ms, node %.0f ms; memory of a link %.1f MiB\n",
      took.c_str(), Since(begin),
      (static_cast<double>(before) - static_cast<double>(FreeBytes()) -
       static_cast<double>(kWindow)) /
          (1 << 20));
  std::vector<uint64_t> host(kWindow / 8);
  std::mt19937_64 random(1);
  for (uint64_t& word : host) word = random();
  Check(cudaMemcpy(pair.window, host.data(), kWindow, cudaMemcpyHostToDevice));
  uint64_t sequence = 0;
  for (uint64_t bytes = uint64_t{1} << 20; bytes <= kWindow; bytes *= 4) {
    const uint64_t offset = kWindow - bytes;
    ASSERT_TRUE(pair.link->Send({{pair.window + offset, bytes}}, nullptr).ok());
    ASSERT_EQ(pair.worker.Ask(absl::StrCat("recv ", offset, " ", bytes)), "ok");
    const uint64_t expected = SumsOf({{pair.window + offset, bytes}})[0];
    EXPECT_EQ(pair.worker.Ask(absl::StrCat("sum ", offset, " ", bytes)), absl::StrCat(expected));
    pair.worker.Ask(absl::StrCat("fill 0 ", bytes, " ", bytes));
    std::atomic<bool> done{false};
    ASSERT_TRUE(pair.link
                    ->Receive(++sequence, {{pair.window, bytes}},
                              [&](const absl::Status& s) {
                                EXPECT_TRUE(s.ok()) << s;
                                done = true;
                              })
                    .ok());
    ASSERT_EQ(pair.worker.Ask(absl::StrCat("send 0 ", bytes)), "ok");
    ASSERT_TRUE(Within(std::chrono::seconds(20), [&] { return done.load(); }));
    EXPECT_EQ(pair.worker.Ask(absl::StrCat("sum 0 ", bytes)),
              absl::StrCat(SumsOf({{pair.window, bytes}})[0]));
  }
}

// Ten thousand slabs of 96 KiB to 97 KiB in groups of up to 256, scattered over the window.
TEST_F(TwoGpus, TenThousandSlabs_ArriveWhole) {
  Pair pair(*nccl_, kWindow, std::chrono::seconds(20));
  pair.worker.Ask(pair.join);
  std::vector<uint64_t> host(kWindow / 8);
  std::mt19937_64 random(2);
  for (uint64_t& word : host) word = random();
  Check(cudaMemcpy(pair.window, host.data(), kWindow, cudaMemcpyHostToDevice));
  constexpr uint64_t kPlace = uint64_t{100} << 10;
  int slabs = 0, wrong = 0;
  while (slabs < 10'000) {
    std::vector<PeerRegion> regions;
    std::vector<DeviceRegion> summed;
    std::string text;
    std::vector<uint64_t> places(kWindow / kPlace);
    for (uint64_t i = 0; i < places.size(); ++i) places[i] = i;
    std::shuffle(places.begin(), places.end(), random);
    const int count = 1 + static_cast<int>(random() % 256);
    for (int i = 0; i < count; ++i) {
      const uint64_t offset = places[i] * kPlace;
      const uint64_t bytes = (uint64_t{96} << 10) + 64 * (random() % 16);
      regions.push_back({pair.window + offset, bytes});
      summed.push_back({pair.window + offset, bytes});
      absl::StrAppend(&text, " ", offset, " ", bytes);
    }
    ASSERT_TRUE(pair.link->Send(regions, nullptr).ok());
    ASSERT_EQ(pair.worker.Ask("recv" + text), "ok");
    const std::string found = pair.worker.Ask("sum" + text);
    if (found != absl::StrJoin(SumsOf(summed), " ")) ++wrong;
    slabs += count;
    if (slabs % 5 == 0) pair.worker.Ask(absl::StrCat("fill 0 1048576 ", slabs));
  }
  std::printf("  %d slabs\n", slabs);
  EXPECT_EQ(wrong, 0);
}

// Gigabytes a second of operations back to back, beside a plain loop.
TEST_F(TwoGpus, Speed) {
  Pair pair(*nccl_, kWindow, std::chrono::seconds(20));
  pair.worker.Ask(pair.join);
  uint64_t sequence = 0;
  std::printf(
      "  of a link up to 128 operations wait and 96 are started, 32 at once, on both sides; the "
      "plain "
      "loop posts all, a call each\n");
  for (uint64_t bytes = uint64_t{1} << 20; bytes <= kWindow; bytes *= 4) {
    const int count = static_cast<int>(std::clamp<uint64_t>((uint64_t{8} << 30) / bytes, 8, 400));
    double rates[2], plain[2];
    for (bool send : {true, false}) {
      const uint64_t before = send ? pair.sent : pair.received;
      pair.worker.Tell(absl::StrCat("loop ", send ? "recv " : "send ", count, " 0 ", bytes));
      const Clock::time_point begin = Clock::now();
      for (int i = 0; i < count; ++i) {
        if (send) {
          while (!pair.link->Send({{pair.window, bytes}}, nullptr).ok()) {
          }
        } else {
          ++sequence;
          while (!pair.link->Receive(sequence, {{pair.window, bytes}}, [](const absl::Status&) {})
                      .ok()) {
          }
        }
      }
      while ((send ? pair.sent : pair.received) < before + count) {
      }
      rates[send] = static_cast<double>(bytes) * count / Since(begin) / 1e6;
      ASSERT_EQ(pair.worker.Answer(), "ok");
      const PeerId id = Value(nccl_->MakeId());
      pair.worker.Tell(
          absl::StrCat("plain ", ToHex(id), send ? " recv" : " send", " 3 ", count, " ", bytes));
      PlainLoop loop(library, 0, 0, id);
      double best = 1e9;
      for (int i = 0; i < 3; ++i) best = std::min(best, loop.Run(send, pair.window, count, bytes));
      plain[send] = static_cast<double>(bytes) * count / best / 1e9;
      ASSERT_EQ(pair.worker.Answer(), "ok");
    }
    std::printf("  %5lu MiB: down %.1f (plain %.1f), up %.1f (plain %.1f) GB/s\n", bytes >> 20,
                rates[1], plain[1], rates[0], plain[0]);
  }
}

// The worker does not receive: its link ends in its time, another worker's goes on meanwhile, and
// so do the node's own kernels.
TEST_F(TwoGpus, StalledWorker_HoldsUpNobodyElse) {
  Pair stalled(*nccl_, uint64_t{64} << 20, std::chrono::seconds(2));
  stalled.worker.Ask(stalled.join);
  Pair other(*nccl_, uint64_t{64} << 20, std::chrono::seconds(20));
  other.worker.Ask(other.join);
  const Clock::time_point begin = Clock::now();
  ASSERT_TRUE(stalled.link->Send({{stalled.window, uint64_t{64} << 20}}, nullptr).ok());
  double longest = 0, longest_sum = 0;
  int moved = 0;
  while (!stalled.link->ended()) {
    Clock::time_point one = Clock::now();
    ASSERT_TRUE(other.link->Send({{other.window, 1 << 20}}, nullptr).ok());
    ASSERT_EQ(other.worker.Ask("recv 0 1048576"), "ok");
    longest = std::max(longest, Since(one));
    one = Clock::now();
    SumsOf({{other.window, 1 << 20}});
    longest_sum = std::max(longest_sum, Since(one));
    ++moved;
    ASSERT_LT(Since(begin), 15'000);
  }
  std::printf(
      "  %s; ended after %.0f ms; meanwhile %d operations of another, longest %.1f ms, "
      "longest sum %.1f ms\n",
      stalled.Ended().c_str(), Since(begin), moved, longest, longest_sum);
  EXPECT_GT(moved, 10);
  EXPECT_EQ(stalled.Ended(), "timeout: send 1 has not ended after 2000 ms");
  EXPECT_FALSE(other.link->ended());
}

// The worker's process is killed in the middle of a transfer: the link ends, the memory is back.
TEST_F(TwoGpus, KilledWorker_EndsTheLink) {
  {
    Pair warm(*nccl_, uint64_t{64} << 20, std::chrono::seconds(2));
    warm.worker.Ask(warm.join);
  }
  const uint64_t before = FreeBytes();
  {
    Pair pair(*nccl_, kWindow, std::chrono::seconds(2));
    pair.worker.Ask(pair.join);
    pair.worker.Tell(absl::StrCat("loop recv 1000 0 ", kWindow));
    for (int i = 0; i < 60; ++i) {
      ASSERT_TRUE(pair.link->Send({{pair.window, kWindow}}, nullptr).ok());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    pair.worker.Kill();
    const Clock::time_point begin = Clock::now();
    ASSERT_TRUE(Within(std::chrono::seconds(15), [&] { return pair.link->ended(); }));
    std::printf("  %s; ended %.0f ms after the kill\n", pair.Ended().c_str(), Since(begin));
  }
  const uint64_t after = FreeBytes();
  std::printf("  memory not back: %.1f MiB\n",
              (static_cast<double>(before) - static_cast<double>(after)) / (1 << 20));
  EXPECT_LE(before, after + (uint64_t{8} << 20));
  Pair again(*nccl_, uint64_t{64} << 20, std::chrono::seconds(20));
  again.worker.Ask(again.join);
  ASSERT_TRUE(again.link->Send({{again.window, 1 << 20}}, nullptr).ok());
  EXPECT_EQ(again.worker.Ask("recv 0 1048576"), "ok");
}

// The node breaks a link that both sides use (the session's end): it ends at once.
TEST_F(TwoGpus, Break_WhileATransferHangs_EndsAtOnce) {
  Pair pair(*nccl_, uint64_t{64} << 20, std::chrono::seconds(60));
  pair.worker.Ask(pair.join);
  ASSERT_TRUE(pair.link->Send({{pair.window, uint64_t{64} << 20}}, nullptr).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const Clock::time_point begin = Clock::now();
  pair.link->Break(PeerLinkEnd::kClosed, "test");
  ASSERT_TRUE(Within(std::chrono::seconds(15), [&] { return pair.link->ended(); }));
  std::printf("  ended after %.0f ms\n", Since(begin));
}

}  // namespace

int Main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--nccl-worker") return RunNcclWorker(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--library=", 0) == 0) library = arg.substr(10);
    if (arg.rfind("--ctas=", 0) == 0) ctas = std::stoi(arg.substr(7));
  }
  PrepareNcclEnvironment();
  return RUN_ALL_TESTS();
}

}  // namespace fq

int main(int argc, char** argv) { return fq::Main(argc, argv); }
