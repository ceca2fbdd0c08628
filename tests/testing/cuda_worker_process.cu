// The worker's side of cuda_worker.h.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/memory/driver_call.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/cuda_worker.h"
#include "tests/testing/worker_messages.h"

namespace fq {
namespace {

constexpr int kLateMilliseconds = 200;

__global__ void Work(int milliseconds) {
  const auto now = [] {
    uint64_t nanoseconds;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
    return nanoseconds;
  };
  const uint64_t until = now() + uint64_t{1000000} * milliseconds;
  while (now() < until) __nanosleep(1000);
}

// An allocation of either kind, on device 0.
class Allocation {
 public:
  Allocation(ShareKind kind, uint64_t bytes) : kind_(kind), bytes_(bytes) {
    if (kind == ShareKind::kIpcHandle) {
      Check(cudaMalloc(&data_, bytes));
      Check(cudaMemset(data_, 0, bytes));
      return;
    }
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    size_t granule = 0;
    Check(Call<decltype(cuMemGetAllocationGranularity)>(
        "cuMemGetAllocationGranularity", &granule, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    bytes_ = (bytes + granule - 1) / granule * granule;
    Check(Call<decltype(cuMemCreate)>("cuMemCreate", &handle_, bytes_, &properties, 0));
    CUdeviceptr begin = 0;
    Check(Call<decltype(cuMemAddressReserve)>("cuMemAddressReserve", &begin, bytes_, 0, 0, 0));
    Check(Call<decltype(cuMemMap)>("cuMemMap", begin, bytes_, 0, handle_, 0));
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    Check(Call<decltype(cuMemSetAccess)>("cuMemSetAccess", begin, bytes_, &access, 1));
    data_ = reinterpret_cast<void*>(begin);
  }
  ~Allocation() {
    if (kind_ == ShareKind::kIpcHandle) {
      cudaFree(data_);
      return;
    }
    const auto begin = reinterpret_cast<CUdeviceptr>(data_);
    Check(Call<decltype(cuMemUnmap)>("cuMemUnmap", begin, bytes_));
    Check(Call<decltype(cuMemAddressFree)>("cuMemAddressFree", begin, bytes_));
    Check(Call<decltype(cuMemRelease)>("cuMemRelease", handle_));
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  uint64_t bytes() const { return bytes_; }

  IpcHandle handle() const {
    cudaIpcMemHandle_t own;
    Check(cudaIpcGetMemHandle(&own, data_));
    IpcHandle handle;
    std::memcpy(handle.data(), &own, sizeof(own));
    return handle;
  }
  int Export() const {
    int fd = -1;
    Check(Call<decltype(cuMemExportToShareableHandle)>(
        "cuMemExportToShareableHandle", &fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    return fd;
  }

 private:
  template <typename Function, typename... Arguments>
  static absl::Status Call(const char* name, Arguments... arguments) {
    return DriverStatus(Value(DriverFunction<Function>(name, 10020))(arguments...), name);
  }

  const ShareKind kind_;
  uint64_t bytes_;
  void* data_ = nullptr;
  CUmemGenericAllocationHandle handle_ = 0;
};

class WorkerLoop {
 public:
  explicit WorkerLoop(int socket) : socket_(socket) {
    Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    Check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventInterprocess));
  }

  void Serve() {
    WorkerRequest request;
    while (ReceiveAll(socket_, &request, sizeof(request))) Handle(request);
  }

 private:
  void Handle(const WorkerRequest& request) {
    WorkerReply reply;
    std::vector<std::byte> payload;
    int fd = -1;
    switch (request.verb) {
      case WorkerVerb::kAllocate:
        fd = Allocate(request, &reply);
        break;
      case WorkerVerb::kFree:
        allocations_.erase(request.allocation);
        break;
      case WorkerVerb::kWrite:
      case WorkerVerb::kWriteLate:
        Write(request);
        break;
      case WorkerVerb::kRead:
        payload.resize(request.bytes);
        Check(cudaMemcpy(payload.data(), At(request), request.bytes, cudaMemcpyDeviceToHost));
        break;
      case WorkerVerb::kReadLate:
        ReadLate(request);
        break;
      case WorkerVerb::kEvent:
        reply.handle = EventHandle();
        break;
      case WorkerVerb::kFinish:
        Check(cudaStreamSynchronize(stream_));
        payload = {pinned_, pinned_ + read_bytes_};
        reply.bytes = payload.size();
        break;
    }
    FQ_CHECK(SendAll(socket_, &reply, sizeof(reply)));
    FQ_CHECK(SendAll(socket_, payload.data(), payload.size()));
    if (fd >= 0) {
      FQ_CHECK(SendDescriptor(socket_, fd));
      close(fd);
    }
  }

  std::byte* At(const WorkerRequest& request) {
    return allocations_.at(request.allocation)->data() + request.offset;
  }

  int Allocate(const WorkerRequest& request, WorkerReply* reply) {
    auto own = std::make_unique<Allocation>(request.kind, request.bytes);
    int fd = -1;
    if (request.kind == ShareKind::kIpcHandle) {
      reply->handle = own->handle();
    } else {
      fd = own->Export();
    }
    reply->bytes = own->bytes();
    reply->allocation = ++last_;
    allocations_[last_] = std::move(own);
    return fd;
  }

  void Write(const WorkerRequest& request) {
    Reserve(request.bytes);
    FQ_CHECK(ReceiveAll(socket_, pinned_, request.bytes));
    const bool late = request.verb == WorkerVerb::kWriteLate;
    if (late) Work<<<1, 1, 0, stream_>>>(kLateMilliseconds);
    Check(cudaMemcpyAsync(At(request), pinned_, request.bytes, cudaMemcpyHostToDevice, stream_));
    if (late) {
      Check(cudaEventRecord(event_, stream_));
    } else {
      Check(cudaStreamSynchronize(stream_));
    }
  }

  void ReadLate(const WorkerRequest& request) {
    Reserve(request.bytes);
    read_bytes_ = request.bytes;
    Work<<<1, 1, 0, stream_>>>(kLateMilliseconds);
    Check(cudaMemcpyAsync(pinned_, At(request), request.bytes, cudaMemcpyDeviceToHost, stream_));
    Check(cudaEventRecord(event_, stream_));
  }

  // Pinned memory of at least that many bytes, which nobody uses.
  void Reserve(uint64_t bytes) {
    Check(cudaStreamSynchronize(stream_));
    read_bytes_ = 0;
    if (bytes <= pinned_bytes_) return;
    Check(cudaFreeHost(pinned_));
    Check(cudaMallocHost(&pinned_, bytes));
    pinned_bytes_ = bytes;
  }

  IpcHandle EventHandle() {
    cudaIpcEventHandle_t own;
    Check(cudaIpcGetEventHandle(&own, event_));
    IpcHandle handle;
    std::memcpy(handle.data(), &own, sizeof(own));
    return handle;
  }

  const int socket_;
  cudaStream_t stream_;
  cudaEvent_t event_;
  std::map<uint64_t, std::unique_ptr<Allocation>> allocations_;
  uint64_t last_ = 0;
  std::byte* pinned_ = nullptr;
  uint64_t pinned_bytes_ = 0, read_bytes_ = 0;
};

}  // namespace

void RunIfWorker(int argc, char** argv) {
  const std::string prefix = "--worker=";
  if (argc != 2 || std::string(argv[1]).compare(0, prefix.size(), prefix) != 0) return;
  WorkerLoop(std::stoi(std::string(argv[1]).substr(prefix.size()))).Serve();
  std::exit(0);
}

}  // namespace fq
