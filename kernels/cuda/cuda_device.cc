#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/device_codec.h"
#include "kernels/cuda/device_queue.h"
#include "kernels/cuda/ipc_memory.h"
#include "kernels/cuda/sm_share.h"
#include "kernels/memory/pinned_space.h"
#include "kernels/memory/vmm_space.h"
#include "kernels/slab_layout.h"

namespace fq {
namespace {

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, DeviceInfo info, std::unique_ptr<const SmShare> background,
             bool with_lists)
      : ordinal_(ordinal),
        info_(std::move(info)),
        background_(std::move(background)),
        with_lists_(with_lists) {}

  const DeviceInfo& info() const override { return info_; }

  absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool urgent) override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    int least = 0, most = 0;
    FQ_RETURN_IF_CUDA_ERROR(cudaDeviceGetStreamPriorityRange(&least, &most));
    cudaStream_t stream = nullptr;
    if (!urgent && background_ != nullptr) {
      FQ_ASSIGN_OR_RETURN(stream, background_->CreateStream(least));
    } else {
      FQ_RETURN_IF_CUDA_ERROR(
          cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? most : least));
    }
    return CudaQueue::Create(ordinal_, stream);
  }

  absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t bytes) override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    return CreateVmmSpace(ordinal_, bytes);
  }

  std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t bytes) override {
    return fq::CreatePinnedSpace(ordinal_, bytes);
  }

  absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(const SharedAllocation& allocation) override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    return MapShared(allocation);
  }

  absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle& handle) override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    return OpenSharedEvent(handle);
  }

  absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    FQ_ASSIGN_OR_RETURN(SlabLayout layout, SlabLayout::Create(shape, std::move(codec_set)));
    std::shared_ptr<const CoderTables> coders;
    if (layout.codec_set() != nullptr) {
      FQ_ASSIGN_OR_RETURN(coders, CodersOf(*layout.codec_set()));
    }
    return CudaCodec::Create(std::move(layout), std::move(coders));
  }

 private:
  // Shared by the codecs of a set for as long as there is one.
  absl::StatusOr<std::shared_ptr<const CoderTables>> CodersOf(const CodecSet& set) {
    const std::lock_guard lock(mutex_);
    std::weak_ptr<const CoderTables>& known = coders_[set.id()];
    std::shared_ptr<const CoderTables> coders = known.lock();
    if (coders != nullptr) return coders;
    FQ_ASSIGN_OR_RETURN(CoderTables made, CoderTables::Create(set, with_lists_));
    coders = std::make_shared<const CoderTables>(std::move(made));
    known = coders;
    return coders;
  }

  const int ordinal_;
  const DeviceInfo info_;
  const std::unique_ptr<const SmShare> background_;  // null: all multiprocessors
  const bool with_lists_;
  std::mutex mutex_;
  std::map<CodecSetId, std::weak_ptr<const CoderTables>> coders_;  // guarded by mutex_
};

// GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, as nvidia-smi prints it.
std::string NameOf(const DeviceUuid& uuid) {
  const std::string hex =
      absl::BytesToHexString({reinterpret_cast<const char*>(uuid.data()), uuid.size()});
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

absl::StatusOr<DeviceInfo> InfoOf(int ordinal) {
  cudaDeviceProp properties;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  DeviceInfo info;
  info.name = properties.name;
  std::memcpy(info.uuid.data(), &properties.uuid, info.uuid.size());
  info.total_bytes = properties.totalGlobalMem;
  return info;
}

absl::StatusOr<int> CountDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  return absl::NotFoundError(
      absl::StrCat("no GPU: ", error == cudaSuccess ? "none visible" : cudaGetErrorString(error)));
}

// The GPU that the options name.
absl::StatusOr<int> FindDevice(const CudaDeviceOptions& options) {
  FQ_ASSIGN_OR_RETURN(const int count, CountDevices());
  if (options.uuid.empty() && options.ordinal >= 0 && options.ordinal < count) {
    return options.ordinal;
  }
  std::string there;
  for (int i = 0; i < count; ++i) {
    FQ_ASSIGN_OR_RETURN(const DeviceInfo info, InfoOf(i));
    const std::string uuid = NameOf(info.uuid);
    if (absl::AsciiStrToLower(options.uuid) == absl::AsciiStrToLower(uuid)) return i;
    absl::StrAppend(&there, i == 0 ? "" : ", ", i, " (", info.name, ", ", uuid, ")");
  }
  return absl::NotFoundError(
      absl::StrCat("no GPU ", options.uuid.empty() ? absl::StrCat(options.ordinal) : options.uuid,
                   "; there are: ", there));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const CudaDeviceOptions& options) {
  if (options.background_percent < 1 || options.background_percent > 100) {
    return absl::InvalidArgumentError(absl::StrCat(
        "device: background_percent is ", options.background_percent, ", expected 1..100"));
  }
  FQ_ASSIGN_OR_RETURN(const int ordinal, FindDevice(options));
  FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
  FQ_ASSIGN_OR_RETURN(DeviceInfo info, InfoOf(ordinal));
  std::unique_ptr<const SmShare> background;
  if (options.background_percent < 100) {
    FQ_ASSIGN_OR_RETURN(background, CreateSmShare(options.background_percent));
  }
  return std::make_unique<CudaDevice>(ordinal, std::move(info), std::move(background),
                                      options.with_lists);
}

}  // namespace fq
