#include "kernels/cuda/ipc_memory.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/device_event.h"
#include "kernels/memory/driver_call.h"

namespace fq {
namespace {

// What a wrong handle leads to; everything else is the device's trouble.
absl::Status WrongHandle(const absl::Status& status) {
  return absl::IsInternal(status) ? absl::InvalidArgumentError(status.message()) : status;
}

// A lost device fails every call: that is not the handle's fault.
absl::Status CheckDevice() {
  size_t free, total;
  return CudaStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
}

class HandleMapping final : public DeviceMapping {
 public:
  HandleMapping(int device, void* data, uint64_t bytes)
      : device_(device), data_(data), bytes_(bytes) {}
  ~HandleMapping() override {
    cudaSetDevice(device_);
    cudaIpcCloseMemHandle(data_);
  }
  std::byte* data() const override { return static_cast<std::byte*>(data_); }
  uint64_t bytes() const override { return bytes_; }

 private:
  const int device_;
  void* const data_;
  const uint64_t bytes_;
};

absl::StatusOr<std::unique_ptr<DeviceMapping>> MapHandle(int device, const IpcHandle& handle,
                                                         uint64_t told) {
  FQ_ASSIGN_OR_RETURN(auto* range,
                      DriverFunction<decltype(cuMemGetAddressRange)>("cuMemGetAddressRange", 3020));
  cudaIpcMemHandle_t own;
  static_assert(sizeof(own) == sizeof(handle));
  std::memcpy(&own, handle.data(), sizeof(own));
  void* data = nullptr;
  FQ_RETURN_IF_ERROR(WrongHandle(CudaStatus(
      cudaIpcOpenMemHandle(&data, own, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle")));
  auto mapping = std::make_unique<HandleMapping>(device, data, told);
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  FQ_RETURN_IF_ERROR(DriverStatus(range(&begin, &bytes, reinterpret_cast<CUdeviceptr>(data)),
                                  "cuMemGetAddressRange"));
  if (bytes == told) return mapping;
  return absl::InvalidArgumentError(
      absl::StrCat("device: allocation has ", bytes, " bytes, the worker says ", told));
}

// The calls of the driver that a descriptor needs.
struct Driver {
  decltype(cuMemImportFromShareableHandle)* import;
  decltype(cuMemGetAllocationPropertiesFromHandle)* properties;
  decltype(cuMemGetAllocationGranularity)* granularity;
  decltype(cuMemRelease)* release;
  decltype(cuMemAddressReserve)* reserve;
  decltype(cuMemAddressFree)* unreserve;
  decltype(cuMemMap)* map;
  decltype(cuMemUnmap)* unmap;
  decltype(cuMemSetAccess)* set_access;
};

absl::StatusOr<Driver> LookUpDriver() {
  Driver driver{};
  FQ_LOOK_UP(driver.import, cuMemImportFromShareableHandle, 10020);
  FQ_LOOK_UP(driver.properties, cuMemGetAllocationPropertiesFromHandle, 10020);
  FQ_LOOK_UP(driver.granularity, cuMemGetAllocationGranularity, 10020);
  FQ_LOOK_UP(driver.release, cuMemRelease, 10020);
  FQ_LOOK_UP(driver.reserve, cuMemAddressReserve, 10020);
  FQ_LOOK_UP(driver.unreserve, cuMemAddressFree, 10020);
  FQ_LOOK_UP(driver.map, cuMemMap, 10020);
  FQ_LOOK_UP(driver.unmap, cuMemUnmap, 10020);
  FQ_LOOK_UP(driver.set_access, cuMemSetAccess, 10020);
  return driver;
}

// Takes back what it has got so far.
class DescriptorMapping final : public DeviceMapping {
 public:
  DescriptorMapping(const Driver& driver, uint64_t bytes) : driver_(driver), bytes_(bytes) {}
  ~DescriptorMapping() override {
    if (mapped_) driver_.unmap(begin_, bytes_);
    if (begin_ != 0) driver_.unreserve(begin_, bytes_);
    if (handle_ != 0) driver_.release(handle_);
  }
  std::byte* data() const override { return reinterpret_cast<std::byte*>(begin_); }
  uint64_t bytes() const override { return bytes_; }

  absl::Status Import(int device, int fd) {
    FQ_RETURN_IF_ERROR(WrongHandle(
        DriverStatus(driver_.import(&handle_, reinterpret_cast<void*>(static_cast<uintptr_t>(fd)),
                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                     absl::StrCat("cuMemImportFromShareableHandle of descriptor ", fd))));
    CUmemAllocationProp properties;
    FQ_RETURN_IF_ERROR(WrongHandle(DriverStatus(driver_.properties(&properties, handle_),
                                                "cuMemGetAllocationPropertiesFromHandle")));
    return CheckProperties(device, properties);
  }

  absl::Status Map(int device) {
    FQ_RETURN_IF_ERROR(
        DriverStatus(driver_.reserve(&begin_, bytes_, 0, 0, 0), "cuMemAddressReserve"));
    // The driver knows how long the allocation is, and refuses what is longer.
    FQ_RETURN_IF_ERROR(WrongHandle(DriverStatus(driver_.map(begin_, bytes_, 0, handle_, 0),
                                                absl::StrCat("cuMemMap of ", bytes_, " bytes"))));
    mapped_ = true;
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return DriverStatus(driver_.set_access(begin_, bytes_, &access, 1), "cuMemSetAccess");
  }

 private:
  absl::Status CheckProperties(int device, const CUmemAllocationProp& properties) const {
    if (properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        properties.location.id != device) {
      return absl::InvalidArgumentError(absl::StrCat(
          "device: the descriptor's memory is at location ", properties.location.id, " of type ",
          static_cast<int>(properties.location.type), ", expected device ", device));
    }
    size_t granule = 0;
    FQ_RETURN_IF_ERROR(
        DriverStatus(driver_.granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                     "cuMemGetAllocationGranularity"));
    if (bytes_ != 0 && bytes_ % granule == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("device: the worker says that its allocation has ", bytes_,
                     " bytes, expected a multiple of ", granule));
  }

  const Driver driver_;
  const uint64_t bytes_;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr begin_ = 0;
  bool mapped_ = false;
};

absl::StatusOr<std::unique_ptr<DeviceMapping>> MapDescriptor(int device, int fd, uint64_t bytes) {
  FQ_ASSIGN_OR_RETURN(const Driver driver, LookUpDriver());
  if (fd < 0) {
    return absl::InvalidArgumentError(absl::StrCat("device: descriptor is ", fd));
  }
  auto mapping = std::make_unique<DescriptorMapping>(driver, bytes);
  FQ_RETURN_IF_ERROR(mapping->Import(device, fd));
  FQ_RETURN_IF_ERROR(mapping->Map(device));
  return mapping;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMapping>> MapShared(const SharedAllocation& allocation) {
  FQ_RETURN_IF_ERROR(CheckDevice());
  int device = 0;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  return allocation.kind == ShareKind::kIpcHandle
             ? MapHandle(device, allocation.handle, allocation.bytes)
             : MapDescriptor(device, allocation.fd, allocation.bytes);
}

absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenSharedEvent(const IpcHandle& handle) {
  FQ_RETURN_IF_ERROR(CheckDevice());
  int device = 0;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  cudaIpcEventHandle_t own;
  static_assert(sizeof(own) == sizeof(handle));
  std::memcpy(&own, handle.data(), sizeof(own));
  cudaEvent_t event = nullptr;
  FQ_RETURN_IF_ERROR(
      WrongHandle(CudaStatus(cudaIpcOpenEventHandle(&event, own), "cudaIpcOpenEventHandle")));
  return std::make_unique<CudaEvent>(device, event);
}

}  // namespace fq
