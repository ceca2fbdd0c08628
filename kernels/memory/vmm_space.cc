#include "kernels/memory/vmm_space.h"

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/memory/driver_call.h"

namespace fq {
namespace {

// Putting a granule behind an address costs 35 us whatever its size (measured on an H200), so they
// are large (and ahead_space.h does it beforehand); but sizes of slabs take memory from each other
// by granules, so there are many.
constexpr uint64_t kMinGranules = 256;
constexpr size_t kMaxGranuleBytes = size_t{32} << 20;

// The calls of the driver that this file makes.
struct Driver {
  decltype(cuMemGetAllocationGranularity)* granularity;
  decltype(cuMemCreate)* create;
  decltype(cuMemRelease)* release;
  decltype(cuMemAddressReserve)* reserve;
  decltype(cuMemAddressFree)* unreserve;
  decltype(cuMemMap)* map;
  decltype(cuMemUnmap)* unmap;
  decltype(cuMemSetAccess)* set_access;
  decltype(cuMemExportToShareableHandle)* share;
};

absl::StatusOr<Driver> LookUpDriver() {
  Driver driver{};
  FQ_LOOK_UP(driver.granularity, cuMemGetAllocationGranularity, 10020);
  FQ_LOOK_UP(driver.create, cuMemCreate, 10020);
  FQ_LOOK_UP(driver.release, cuMemRelease, 10020);
  FQ_LOOK_UP(driver.reserve, cuMemAddressReserve, 10020);
  FQ_LOOK_UP(driver.unreserve, cuMemAddressFree, 10020);
  FQ_LOOK_UP(driver.map, cuMemMap, 10020);
  FQ_LOOK_UP(driver.unmap, cuMemUnmap, 10020);
  FQ_LOOK_UP(driver.set_access, cuMemSetAccess, 10020);
  FQ_LOOK_UP(driver.share, cuMemExportToShareableHandle, 10020);
  return driver;
}

using Handles = std::vector<CUmemGenericAllocationHandle>;

CUdeviceptr Address(const std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

CUmemAllocationProp PropertiesOn(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {};
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

class DriverSpace final : public VmmSpace {
 public:
  DriverSpace(const Driver& driver, int device, size_t granule_bytes)
      : driver_(driver), device_(device), granule_bytes_(granule_bytes) {}

  ~DriverSpace() override {
    for (const auto& [begin, bytes] : reservations_) Release(begin, bytes);
    for (CUmemGenericAllocationHandle handle : free_) driver_.release(handle);
  }

  absl::Status Take(uint64_t granules);

  size_t granule_bytes() const override { return granule_bytes_; }
  bool on_host() const override { return false; }
  size_t granules() const override { return granules_; }
  size_t free_granules() const override {
    const std::lock_guard lock(mutex_);
    return free_.size();
  }

  std::byte* Reserve(size_t bytes) override;
  void Unreserve(std::byte* begin, size_t bytes) override;
  bool Commit(std::byte* begin, size_t bytes) override;
  void Decommit(std::byte* begin, size_t bytes) override;
  absl::StatusOr<int> Export(const std::byte* begin) const override;

 private:
  Handles TakeFree(size_t granules);
  size_t Map(std::byte* begin, const Handles& handles);
  bool Allow(std::byte* begin, size_t bytes);
  void Release(std::byte* begin, size_t bytes);

  const Driver driver_;
  const int device_;
  const size_t granule_bytes_;
  size_t granules_ = 0;
  std::map<std::byte*, size_t> reservations_;  // bytes by begin
  mutable std::mutex mutex_;                   // of all below
  Handles free_;
  std::map<const std::byte*, CUmemGenericAllocationHandle> mapped_;  // by where the granule begins
};

absl::Status DriverSpace::Take(uint64_t granules) {
  const CUmemAllocationProp properties = PropertiesOn(device_);
  for (; granules_ < granules; ++granules_) {
    CUmemGenericAllocationHandle handle{};
    FQ_RETURN_IF_ERROR(
        DriverStatus(driver_.create(&handle, granule_bytes_, &properties, 0), "cuMemCreate"));
    free_.push_back(handle);
  }
  return absl::OkStatus();
}

std::byte* DriverSpace::Reserve(size_t bytes) {
  CUdeviceptr begin = 0;
  if (driver_.reserve(&begin, bytes, granule_bytes_, 0, 0) != CUDA_SUCCESS) return nullptr;
  auto* data = reinterpret_cast<std::byte*>(begin);
  reservations_.emplace(data, bytes);
  return data;
}

void DriverSpace::Unreserve(std::byte* begin, size_t bytes) {
  Release(begin, bytes);
  reservations_.erase(begin);
}

void DriverSpace::Release(std::byte* begin, size_t bytes) {
  Decommit(begin, bytes);
  driver_.unreserve(Address(begin), bytes);
}

// The driver's calls, which take their time, without the mutex.
bool DriverSpace::Commit(std::byte* begin, size_t bytes) {
  const Handles handles = TakeFree(bytes / granule_bytes_);
  if (handles.empty()) return false;
  const size_t mapped = Map(begin, handles);
  const bool ready = mapped == handles.size() && Allow(begin, bytes);
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < mapped; ++i) mapped_.emplace(begin + i * granule_bytes_, handles[i]);
    free_.insert(free_.end(), handles.begin() + static_cast<ptrdiff_t>(mapped), handles.end());
  }
  if (!ready) Decommit(begin, mapped * granule_bytes_);
  return ready;
}

// So many, or none.
Handles DriverSpace::TakeFree(size_t granules) {
  const std::lock_guard lock(mutex_);
  if (granules > free_.size()) return {};
  const auto first = free_.end() - static_cast<ptrdiff_t>(granules);
  Handles handles(first, free_.end());
  free_.erase(first, free_.end());
  return handles;
}

// How many could be.
size_t DriverSpace::Map(std::byte* begin, const Handles& handles) {
  if (cudaSetDevice(device_) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  size_t mapped = 0;
  while (mapped < handles.size() &&
         driver_.map(Address(begin + mapped * granule_bytes_), granule_bytes_, 0, handles[mapped],
                     0) == CUDA_SUCCESS) {
    ++mapped;
  }
  return mapped;
}

bool DriverSpace::Allow(std::byte* begin, size_t bytes) {
  CUmemAccessDesc access{};
  access.location = PropertiesOn(device_).location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return driver_.set_access(Address(begin), bytes, &access, 1) == CUDA_SUCCESS;
}

// A granule that the driver does not unmap (the device is lost) is not used again.
void DriverSpace::Decommit(std::byte* begin, size_t bytes) {
  const std::lock_guard lock(mutex_);
  auto it = mapped_.lower_bound(begin);
  while (it != mapped_.end() && it->first < begin + bytes) {
    if (driver_.unmap(Address(it->first), granule_bytes_) == CUDA_SUCCESS) {
      free_.push_back(it->second);
    } else {
      driver_.release(it->second);
    }
    it = mapped_.erase(it);
  }
}

absl::StatusOr<int> DriverSpace::Export(const std::byte* begin) const {
  const std::lock_guard lock(mutex_);
  const auto it = mapped_.find(begin);
  if (it == mapped_.end()) {
    return absl::InvalidArgumentError("no granule of device memory begins there");
  }
  int fd = -1;
  FQ_RETURN_IF_ERROR(
      DriverStatus(driver_.share(&fd, it->second, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                   "cuMemExportToShareableHandle"));
  return fd;
}

absl::Status RuntimeStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

// A power of two, as of MemorySpace.
absl::StatusOr<size_t> ChooseGranule(const Driver& driver, int device, uint64_t bytes) {
  const CUmemAllocationProp properties = PropertiesOn(device);
  size_t granule_bytes = 0;
  FQ_RETURN_IF_ERROR(DriverStatus(
      driver.granularity(&granule_bytes, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
      "cuMemGetAllocationGranularity"));
  if (granule_bytes == 0 || (granule_bytes & (granule_bytes - 1)) != 0) {
    return absl::InternalError(
        absl::StrCat("the driver's granularity of ", granule_bytes, " is no power of two"));
  }
  while (granule_bytes < kMaxGranuleBytes && bytes / granule_bytes >= 2 * kMinGranules) {
    granule_bytes *= 2;
  }
  return granule_bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<VmmSpace>> CreateVmmSpace(int device, uint64_t bytes) {
  size_t free_bytes = 0, total_bytes = 0;
  FQ_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(device), "cudaSetDevice"));
  FQ_RETURN_IF_ERROR(RuntimeStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  FQ_ASSIGN_OR_RETURN(const Driver driver, LookUpDriver());
  FQ_ASSIGN_OR_RETURN(const size_t granule_bytes, ChooseGranule(driver, device, bytes));
  if (bytes < granule_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "asked for ", bytes, " bytes of device memory, must be at least ", granule_bytes));
  }
  auto space = std::make_unique<DriverSpace>(driver, device, granule_bytes);
  const absl::Status taken = space->Take(bytes / granule_bytes);
  if (absl::IsResourceExhausted(taken)) {
    return absl::ResourceExhaustedError(absl::StrCat("asked for ", bytes,
                                                     " bytes of device memory, ", free_bytes,
                                                     " of ", total_bytes, " are free"));
  }
  FQ_RETURN_IF_ERROR(taken);
  return space;
}

}  // namespace fq
