#include "tests/testing/nccl_worker.h"

#include <cuda_runtime_api.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_device.h"
#include "server/peers/nccl_comm.h"
#include "server/peers/nccl_library.h"
#include "tests/testing/check_cuda.h"

namespace fq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kHelloBytes = 256;
constexpr uint64_t kTogether = 32, kStarted = 3 * kTogether;  // as PeerLink

std::string ReadLine(int socket) {
  std::string line;
  for (char c; read(socket, &c, 1) == 1 && c != '\n';) line.push_back(c);
  return line;
}

void WriteLine(int socket, const std::string& line) {
  const std::string text = line + "\n";
  FQ_CHECK(write(socket, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

PeerId FromHex(const std::string& hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  PeerId id{};
  FQ_CHECK(bytes.size() == id.size());
  std::memcpy(id.data(), bytes.data(), id.size());
  return id;
}

class Worker {
 public:
  Worker(const std::string& library, int ordinal, uint64_t window_bytes, int max_ctas)
      : library_(library), ordinal_(ordinal) {
    CudaDeviceOptions options;
    options.ordinal = ordinal;
    device_ = Value(OpenCudaDevice(options));
    queue_ = Value(device_->CreateQueue(false));
    Check(cudaMalloc(&memory_, window_bytes));
    window_ = static_cast<std::byte*>(memory_);
    nccl_ = Value(OpenNccl({library, ordinal, max_ctas}));
  }

  std::string Do(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "join") return Join(words);
    if (verb == "recv" || verb == "send") return Move(verb, words);
    if (verb == "loop") return Loop(words);
    if (verb == "fill") return Fill(words);
    if (verb == "sum") return Sum(words);
    if (verb == "plain") return Plain(words);
    if (verb == "leave") return Leave();
    return "unknown " + verb;
  }

 private:
  struct Lane {
    std::unique_ptr<PeerComm> comm;
    uint64_t started = 0;
    uint64_t Completed() const { return Value(comm->Completed()); }
    void AwaitReady() const {
      while (!Value(comm->Ready())) std::this_thread::yield();
    }
    // The same operation so many times.
    void Start(const PeerRegions& regions, uint64_t count = 1) {
      while (count > 0) {
        const uint64_t room = std::min(kStarted - (started - Completed()), kTogether);
        if (room == 0) continue;
        AwaitReady();
        const std::vector<const PeerRegions*> operations(std::min(room, count), &regions);
        Check(comm->Start(operations));
        started += operations.size();
        count -= operations.size();
      }
    }
    void AwaitAll() const {
      while (Completed() < started) {
      }
    }
  };

  std::string Join(std::istringstream& words) {
    std::string down, up;
    words >> down >> up;
    const Clock::time_point begin = Clock::now();
    down_.comm = Value(nccl_->JoinOther(FromHex(down), PeerDirection::kReceive));
    up_.comm = Value(nccl_->JoinOther(FromHex(up), PeerDirection::kSend));
    for (Lane* lane : {&down_, &up_}) lane->Start({{window_, kHelloBytes}});
    for (Lane* lane : {&down_, &up_}) lane->AwaitAll();
    return absl::StrCat(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }

  // OFFSET BYTES ...
  std::string Move(const std::string& verb, std::istringstream& words) {
    PeerRegions regions;
    for (uint64_t offset, bytes; words >> offset >> bytes;) {
      regions.push_back({window_ + offset, bytes});
    }
    Lane& lane = verb == "recv" ? down_ : up_;
    lane.Start(regions);
    lane.AwaitAll();
    return "ok";
  }

  // DIRECTION COUNT OFFSET BYTES: the same operation over and over.
  std::string Loop(std::istringstream& words) {
    std::string direction;
    uint64_t count, offset, bytes;
    words >> direction >> count >> offset >> bytes;
    Lane& lane = direction == "recv" ? down_ : up_;
    lane.Start({{window_ + offset, bytes}}, count);
    lane.AwaitAll();
    return "ok";
  }

  std::string Fill(std::istringstream& words) {
    uint64_t offset, bytes, seed;
    words >> offset >> bytes >> seed;
    std::mt19937_64 random(seed);
    std::vector<uint64_t> host(bytes / sizeof(uint64_t));
    for (uint64_t& word : host) word = random();
    Check(cudaMemcpy(window_ + offset, host.data(), bytes, cudaMemcpyHostToDevice));
    return "ok";
  }

  std::string Sum(std::istringstream& words) {
    std::vector<DeviceRegion> regions;
    for (uint64_t offset, bytes; words >> offset >> bytes;) {
      regions.push_back({window_ + offset, bytes});
    }
    std::vector<uint64_t> sums(regions.size());
    Check(queue_->Sum(regions, absl::MakeSpan(sums)));
    Check(queue_->Finish());
    std::string text;
    for (uint64_t sum : sums) absl::StrAppend(&text, text.empty() ? "" : " ", sum);
    return text;
  }

  // ID DIRECTION ROUNDS COUNT BYTES: a plain loop of blocking calls, as PlainLoop.
  std::string Plain(std::istringstream& words);

  std::string Leave() {
    down_.comm.reset();
    up_.comm.reset();
    down_.started = up_.started = 0;
    return "ok";
  }

  const std::string library_;
  const int ordinal_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceQueue> queue_;
  void* memory_ = nullptr;
  std::byte* window_ = nullptr;
  std::unique_ptr<PeerTransport> nccl_;
  Lane down_, up_;
};

std::string Worker::Plain(std::istringstream& words) {
  std::string id, direction;
  int rounds, count;
  uint64_t bytes;
  words >> id >> direction >> rounds >> count >> bytes;
  PlainLoop loop(library_, ordinal_, 1, FromHex(id));
  for (int i = 0; i < rounds; ++i) loop.Run(direction == "send", window_, count, bytes);
  return "ok";
}

}  // namespace

PlainLoop::PlainLoop(const std::string& library, int ordinal, int rank, const PeerId& id)
    : nccl_(Value(NcclLibrary::Open(library))), peer_(1 - rank) {
  Check(cudaSetDevice(ordinal));
  Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  NcclUniqueId unique;
  std::memcpy(unique.internal, id.data(), id.size());
  NcclConfig config;
  Check(nccl_->Check(nccl_->CommInitRankConfig(&comm_, 2, unique, rank, &config), "init"));
}

PlainLoop::~PlainLoop() {
  nccl_->CommAbort(comm_);
  cudaStreamDestroy(stream_);
}

double PlainLoop::Run(bool send, std::byte* data, int count, uint64_t bytes) {
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < count; ++i) {
    Check(nccl_->Check(send ? nccl_->Send(data, bytes, kNcclUint8, peer_, comm_, stream_)
                            : nccl_->Recv(data, bytes, kNcclUint8, peer_, comm_, stream_),
                       "plain"));
  }
  Check(cudaStreamSynchronize(stream_));
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

NcclWorker::NcclWorker(const std::string& library, int ordinal, uint64_t window_bytes,
                       int max_ctas) {
  int pair[2];
  FQ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  process_ = fork();
  FQ_CHECK(process_ >= 0);
  if (process_ == 0) {
    dup2(pair[1], 3);
    execl("/proc/self/exe", "worker", "--nccl-worker", library.c_str(),
          std::to_string(ordinal).c_str(), std::to_string(window_bytes).c_str(),
          std::to_string(max_ctas).c_str(), nullptr);
    _exit(1);
  }
  close(pair[1]);
  socket_ = pair[0];
  FQ_CHECK(Answer() == "ready");
}

NcclWorker::~NcclWorker() {
  Kill();
  close(socket_);
}

void NcclWorker::Kill() {
  if (process_ < 0) return;
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

void NcclWorker::Tell(const std::string& line) { WriteLine(socket_, line); }
std::string NcclWorker::Answer() { return ReadLine(socket_); }
std::string NcclWorker::Ask(const std::string& line) {
  Tell(line);
  return Answer();
}

int RunNcclWorker(int argc, char** argv) {
  constexpr int kSocket = 3;
  if (argc != 6) return 2;
  PrepareNcclEnvironment();
  Worker worker(argv[2], std::stoi(argv[3]), std::stoull(argv[4]), std::stoi(argv[5]));
  WriteLine(kSocket, "ready");
  for (;;) {
    const std::string line = ReadLine(kSocket);
    if (line.empty()) return 0;
    WriteLine(kSocket, worker.Do(line));
  }
}

std::string ToHex(const PeerId& id) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(id.data()), id.size()});
}

}  // namespace fq
