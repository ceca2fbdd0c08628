#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "tests/kernels/cuda/emulation/cuda_emulation.h"
#include "tests/kernels/cuda/emulation/cuda_runtime_api.h"

namespace fq::emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned char kPoison = 0xF7;  // NaN in every element type

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::terminate();
}

// Memory whose end touches a page without access, as far as an alignment of 16 allows.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t rounded = (bytes + 15) / 16 * 16, pages = (rounded + page - 1) / page * page;
    mapped_ = pages + page;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) Fail("no memory");
    mprotect(base_ + pages, page, PROT_NONE);
    data_ = base_ + pages - rounded;
    std::memset(base_, kPoison, pages);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* data() const { return data_; }

 private:
  unsigned char *base_, *data_;
  size_t mapped_;
};

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started = false, done = false;
  const unsigned* waits_for = nullptr;  // a count that has to move on from `seen`
  unsigned seen = 0;
};

struct Barrier {
  unsigned arrived = 0, passed = 0;
};

// The block that runs now.
struct Machine {
  Schedule schedule = Schedule::kForward;
  std::mt19937 random{1};
  std::vector<Fiber> fibers;
  std::vector<unsigned char> stacks;
  std::vector<Barrier> warps;
  Barrier block;
  std::vector<std::byte> slots;     // [warp][2][32][kSlotBytes]
  std::vector<unsigned> exchanges;  // of each thread
  jmp_buf scheduler;
  ucontext_t main;
  const std::function<void()>* body = nullptr;
  unsigned thread = 0, block_index = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
};
Machine machine;

void Enter() {
  (*machine.body)();
  machine.fibers[machine.thread].done = true;
  _longjmp(machine.scheduler, 1);
}

void Switch() {
  if (_setjmp(machine.fibers[machine.thread].resume) == 0) _longjmp(machine.scheduler, 1);
}

void Wait(Barrier* barrier, unsigned count) {
  if (++barrier->arrived == count) {
    barrier->arrived = 0;
    ++barrier->passed;
    return;
  }
  Fiber& fiber = machine.fibers[machine.thread];
  fiber.waits_for = &barrier->passed;
  fiber.seen = barrier->passed;
  Switch();
}

void Resume(unsigned thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.thread = thread;
  fiber.waits_for = nullptr;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = &machine.stacks[thread * kStackBytes];
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, Enter, 0);
  setcontext(&fiber.start);
}

bool Runnable(const Fiber& fiber) {
  return !fiber.done && (fiber.waits_for == nullptr || *fiber.waits_for != fiber.seen);
}

void RunBlock(int threads) {
  machine.fibers.assign(threads, Fiber());
  machine.stacks.resize(threads * kStackBytes);
  machine.warps.assign((threads + 31) / 32, Barrier());
  machine.block = Barrier();
  machine.slots.resize(threads * 2 * kSlotBytes);
  machine.exchanges.assign(threads, 0);
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  if (machine.schedule == Schedule::kBackward) std::reverse(order.begin(), order.end());
  int done = 0;
  while (done < threads) {
    if (machine.schedule == Schedule::kShuffled) {
      std::shuffle(order.begin(), order.end(), machine.random);
    }
    bool moved = false;
    for (unsigned thread : order) {
      if (!Runnable(machine.fibers[thread])) continue;
      Resume(thread);
      moved = true;
      done += machine.fibers[thread].done;
    }
    if (!moved) Fail("threads wait for one that has ended: a barrier that not all reach");
  }
  if (machine.block.arrived != 0) Fail("a thread ended while others wait at a barrier");
}

std::map<void*, std::unique_ptr<Guarded>>& Allocations() {
  static std::map<void*, std::unique_ptr<Guarded>> allocations;
  return allocations;
}

}  // namespace

void SetSchedule(Schedule schedule) { machine.schedule = schedule; }

void RunGrid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  machine.body = &body;
  for (int block = 0; block < blocks; ++block) {
    const Guarded shared(shared_bytes);
    machine.shared = shared.data();
    machine.shared_bytes = shared_bytes;
    machine.block_index = static_cast<unsigned>(block);
    RunBlock(threads);
  }
}

Index Thread() { return {machine.thread}; }
Index Block() { return {machine.block_index}; }
Index BlockSize() { return {static_cast<unsigned>(machine.fibers.size())}; }
unsigned char* SharedMemory() { return machine.shared; }

void CheckIsGlobal(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (byte < machine.shared || byte >= machine.shared + machine.shared_bytes) return;
  std::fprintf(stderr, "emulation: a load of constants from shared memory\n");
  std::abort();
}
void BlockBarrier() { Wait(&machine.block, static_cast<unsigned>(machine.fibers.size())); }
void WarpBarrier() { Wait(&machine.warps[machine.thread / 32], 32); }

const std::byte* Exchange(const void* value, size_t bytes) {
  const unsigned warp = machine.thread / 32, lane = machine.thread % 32;
  const unsigned turn = machine.exchanges[machine.thread]++ % 2;
  std::byte* slots = &machine.slots[(warp * 2 + turn) * 32 * kSlotBytes];
  std::memcpy(slots + lane * kSlotBytes, value, bytes);
  WarpBarrier();
  return slots;
}

}  // namespace fq::emulation

namespace fq {

void MultiplyAdd(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a.x, a.y, a.z, a.w, b0, b1};
  float2 own[6];
  for (int i = 0; i < 6; ++i) own[i] = WidenHalves(words[i]);
  const std::byte* slots = emulation::Exchange(own, sizeof(own));
  const int lane = static_cast<int>(threadIdx.x & 31u), g = lane >> 2, t = lane & 3;
  const auto at = [&](int of_lane, int word) {
    return reinterpret_cast<const float2*>(slots + of_lane * emulation::kSlotBytes)[word];
  };
  for (int i = 0; i < 4; ++i) {
    const int row = i >> 1, column = 2 * t + (i & 1);
    double sum = d[i];
    for (int k = 0; k < 8; ++k) {
      const float2 x = at(4 * g + k % 4, row + 2 * (k / 4)), y = at(4 * column + k % 4, 4 + k / 4);
      sum += static_cast<double>(x.x) * y.x + static_cast<double>(x.y) * y.y;
    }
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace fq

using fq::emulation::Allocations;
using fq::emulation::Guarded;

cudaError_t cudaMalloc(void** data, size_t bytes) {
  auto memory = std::make_unique<Guarded>(bytes);
  *data = memory->data();
  Allocations()[*data] = std::move(memory);
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  return data == nullptr || Allocations().erase(data) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an emulated error";
}
