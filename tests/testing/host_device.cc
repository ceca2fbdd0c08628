#include "tests/testing/host_device.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "tests/testing/guarded_memory.h"
#include "tests/testing/host_queue.h"

namespace fq {

struct HostWorkerMemory::State {
  State(ShareKind kind, uint64_t bytes)
      : kind(kind), fd(CreateMemfd(bytes)), memory(std::make_unique<GuardedMemory>(fd, bytes)) {}
  ~State() { close(fd); }

  const ShareKind kind;
  const int fd;
  const std::unique_ptr<GuardedMemory> memory;
};

struct HostWorkerEvent::State {
  std::mutex mutex;
  int64_t recorded = 0, completed = 0, asked = 0;  // guarded by the mutex
};

struct HostDevice::State {
  const std::shared_ptr<HostFaults> faults = std::make_shared<HostFaults>();
  std::atomic<uint64_t> free_bytes;
  std::atomic<int> mappings{0};
};

namespace {

constexpr uint64_t kGranule = uint64_t{2} << 20;

// What the handles of this process stand for: their first 8 bytes are an address.
template <typename State>
class Handles {
 public:
  void Add(const void* address, std::weak_ptr<State> state) {
    const std::lock_guard lock(mutex_);
    all_[reinterpret_cast<uint64_t>(address)] = std::move(state);
  }
  void Remove(const void* address) {
    const std::lock_guard lock(mutex_);
    all_.erase(reinterpret_cast<uint64_t>(address));
  }
  // Null when there is none.
  std::shared_ptr<State> Find(const IpcHandle& handle) const {
    uint64_t address;
    std::memcpy(&address, handle.data(), sizeof(address));
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(address);
    return found == all_.end() ? nullptr : found->second.lock();
  }
  static IpcHandle HandleOf(const void* address) {
    IpcHandle handle{};
    std::memcpy(handle.data(), &address, sizeof(address));
    return handle;
  }

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, std::weak_ptr<State>> all_;
};

Handles<HostWorkerMemory::State>& Memories() {
  static Handles<HostWorkerMemory::State> handles;
  return handles;
}
Handles<HostWorkerEvent::State>& Events() {
  static Handles<HostWorkerEvent::State> handles;
  return handles;
}

// Memory of the device or, with on_host, pinned memory. Address space is a sparse memfd.
// Thread-safe.
class SparseSpace final : public MemorySpace {
 public:
  SparseSpace(std::shared_ptr<HostDevice::State> device, uint64_t bytes, bool on_host)
      : device_(std::move(device)), bytes_(bytes), on_host_(on_host), left_(bytes) {}
  ~SparseSpace() override {
    if (!on_host_) device_->free_bytes += bytes_;
  }

  size_t granule_bytes() const override { return kGranule; }
  bool on_host() const override { return on_host_; }

  std::byte* Reserve(size_t bytes) override {
    const int fd = CreateMemfd(bytes);
    auto memory = std::make_unique<GuardedMemory>(fd, bytes);
    std::byte* begin = on_host_ ? memory->host() : memory->device();
    const std::lock_guard lock(mutex_);
    reserved_[begin] = {fd, std::move(memory), std::vector<bool>(bytes / kGranule)};
    return begin;
  }

  void Unreserve(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    const auto found = reserved_.find(begin);
    FQ_CHECK(found != reserved_.end() && found->second.memory->bytes() == bytes);
    for (const bool committed : found->second.committed) left_ += committed ? kGranule : 0;
    close(found->second.fd);
    reserved_.erase(found);
  }

  bool Commit(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (bytes > left_) return false;
    left_ -= bytes;
    Mark(begin, bytes, true);
    return true;
  }

  void Decommit(std::byte* begin, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    left_ += bytes;
    Reservation& reservation = Mark(begin, bytes, false);
    FQ_CHECK(fallocate(reservation.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       begin - BeginOf(reservation), static_cast<off_t>(bytes)) == 0);
  }

 private:
  struct Reservation {
    int fd;
    std::unique_ptr<GuardedMemory> memory;
    std::vector<bool> committed;  // [granule]
  };

  std::byte* BeginOf(const Reservation& reservation) const {
    return on_host_ ? reservation.memory->host() : reservation.memory->device();
  }

  // Every granule of the range must have been as it is not to be.
  Reservation& Mark(std::byte* begin, size_t bytes, bool committed) {
    Reservation& reservation = std::prev(reserved_.upper_bound(begin))->second;
    const size_t first = static_cast<size_t>(begin - BeginOf(reservation)) / kGranule;
    for (size_t i = first; i < first + bytes / kGranule; ++i) {
      FQ_CHECK(reservation.committed.at(i) != committed);
      reservation.committed[i] = committed;
    }
    return reservation;
  }

  const std::shared_ptr<HostDevice::State> device_;
  const uint64_t bytes_;
  const bool on_host_;
  std::mutex mutex_;  // of all below
  uint64_t left_;
  std::map<std::byte*, Reservation> reserved_;
};

class HostMapping final : public DeviceMapping {
 public:
  // `owner` keeps the memory of a handle alive.
  HostMapping(std::shared_ptr<HostDevice::State> device, std::shared_ptr<void> owner, int fd,
              uint64_t bytes)
      : device_(std::move(device)), owner_(std::move(owner)), memory_(fd, bytes) {
    ++device_->mappings;
  }
  ~HostMapping() override { --device_->mappings; }
  std::byte* data() const override { return memory_.device(); }
  uint64_t bytes() const override { return memory_.bytes(); }

 private:
  const std::shared_ptr<HostDevice::State> device_;
  const std::shared_ptr<void> owner_;
  const GuardedMemory memory_;
};

class OpenedEvent final : public WorkerEvent {
 public:
  OpenedEvent(std::shared_ptr<HostDevice::State> device,
              std::shared_ptr<HostWorkerEvent::State> state)
      : device_(std::move(device)), state_(std::move(state)) {}

  absl::StatusOr<bool> Done() const override {
    FQ_RETURN_IF_ERROR(device_->faults->Check());
    const std::lock_guard lock(state_->mutex);
    const bool done = state_->completed == state_->recorded;
    if (!done) ++state_->asked;
    return done;
  }

 private:
  const std::shared_ptr<HostDevice::State> device_;
  const std::shared_ptr<HostWorkerEvent::State> state_;
};

absl::Status CheckLength(uint64_t found, uint64_t told) {
  if (found == told) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("device: allocation has ", found, " bytes, the worker says ", told));
}

}  // namespace

HostWorkerMemory::HostWorkerMemory(ShareKind kind, uint64_t bytes)
    : state_(std::make_shared<State>(kind, bytes)) {
  if (kind == ShareKind::kIpcHandle) Memories().Add(data(), state_);
}
HostWorkerMemory::~HostWorkerMemory() { Memories().Remove(data()); }

std::byte* HostWorkerMemory::data() const { return state_->memory->host(); }

SharedAllocation HostWorkerMemory::Share() const {
  SharedAllocation allocation;
  allocation.kind = state_->kind;
  allocation.bytes = state_->memory->bytes();
  if (state_->kind == ShareKind::kFileDescriptor) {
    allocation.fd = state_->fd;
  } else {
    allocation.handle = Memories().HandleOf(data());
  }
  return allocation;
}

HostWorkerEvent::HostWorkerEvent() : state_(std::make_shared<State>()) {
  Events().Add(state_.get(), state_);
}
HostWorkerEvent::~HostWorkerEvent() {
  Events().Remove(state_.get());
  Complete();
}

IpcHandle HostWorkerEvent::handle() const { return Events().HandleOf(state_.get()); }

void HostWorkerEvent::Record() {
  const std::lock_guard lock(state_->mutex);
  ++state_->recorded;
  state_->asked = 0;
}

int64_t HostWorkerEvent::asked() const {
  const std::lock_guard lock(state_->mutex);
  return state_->asked;
}

void HostWorkerEvent::Complete() {
  const std::lock_guard lock(state_->mutex);
  state_->completed = state_->recorded;
}

HostDevice::HostDevice(uint64_t total_bytes, uint32_t number) : state_(std::make_shared<State>()) {
  state_->free_bytes = total_bytes;
  info_.name = "host memory in the place of a GPU";
  info_.uuid = {0xF0, 0x0D};
  std::memcpy(&info_.uuid[2], &number, sizeof(number));
  info_.total_bytes = total_bytes;
}
HostDevice::~HostDevice() = default;

void HostDevice::FailNextFinish(absl::Status status) {
  state_->faults->FailNextFinish(std::move(status));
}
void HostDevice::Lose() { state_->faults->Lose(); }
uint64_t HostDevice::free_bytes() const { return state_->free_bytes; }
int HostDevice::open_mappings() const { return state_->mappings; }

absl::StatusOr<std::unique_ptr<DeviceQueue>> HostDevice::CreateQueue(bool) {
  FQ_RETURN_IF_ERROR(state_->faults->Check());
  return std::make_unique<HostQueue>(state_->faults);
}

absl::StatusOr<std::unique_ptr<MemorySpace>> HostDevice::CreateSpace(uint64_t bytes) {
  FQ_RETURN_IF_ERROR(state_->faults->Check());
  uint64_t free = state_->free_bytes;
  do {
    if (bytes > free) {
      return absl::ResourceExhaustedError(
          absl::StrCat("device: ", bytes, " bytes asked for, ", free, " are free"));
    }
  } while (!state_->free_bytes.compare_exchange_weak(free, free - bytes));
  return std::make_unique<SparseSpace>(state_, bytes, false);
}

std::unique_ptr<MemorySpace> HostDevice::CreatePinnedSpace(uint64_t bytes) {
  return std::make_unique<SparseSpace>(state_, bytes, true);
}

absl::StatusOr<std::unique_ptr<DeviceMapping>> HostDevice::Map(const SharedAllocation& allocation) {
  FQ_RETURN_IF_ERROR(state_->faults->Check());
  if (allocation.kind == ShareKind::kIpcHandle) {
    std::shared_ptr<HostWorkerMemory::State> memory = Memories().Find(allocation.handle);
    if (memory == nullptr) return absl::InvalidArgumentError("device: no such memory handle");
    FQ_RETURN_IF_ERROR(CheckLength(memory->memory->bytes(), allocation.bytes));
    const int fd = memory->fd;
    return std::make_unique<HostMapping>(state_, std::move(memory), fd, allocation.bytes);
  }
  struct stat file;
  if (fstat(allocation.fd, &file) != 0 || !S_ISREG(file.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("device: descriptor ", allocation.fd, " is not shared memory"));
  }
  FQ_RETURN_IF_ERROR(CheckLength(static_cast<uint64_t>(file.st_size), allocation.bytes));
  return std::make_unique<HostMapping>(state_, nullptr, allocation.fd, allocation.bytes);
}

absl::StatusOr<std::unique_ptr<WorkerEvent>> HostDevice::OpenEvent(const IpcHandle& handle) {
  FQ_RETURN_IF_ERROR(state_->faults->Check());
  std::shared_ptr<HostWorkerEvent::State> event = Events().Find(handle);
  if (event == nullptr) return absl::InvalidArgumentError("device: no such event handle");
  return std::make_unique<OpenedEvent>(state_, std::move(event));
}

absl::StatusOr<std::unique_ptr<const DeviceCodec>> HostDevice::CreateCodec(
    const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) {
  FQ_RETURN_IF_ERROR(state_->faults->Check());
  FQ_ASSIGN_OR_RETURN(auto slabs, SlabCodec::Create(shape, std::move(codec_set), CpuBackend()));
  return std::make_unique<const HostCodec>(std::move(slabs));
}

}  // namespace fq
