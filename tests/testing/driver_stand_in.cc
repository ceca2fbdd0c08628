#include "tests/testing/driver_stand_in.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <set>

namespace fq {
namespace {

std::mutex& Mutex() {
  static std::mutex mutex;
  return mutex;
}

std::map<CUdeviceptr, size_t>& Mapped() {
  static std::map<CUdeviceptr, size_t> mapped;
  return mapped;
}

// The memory of a handle; a memfd from the first use on, so that many handles cost no descriptors.
struct Granule {
  size_t bytes = 0;
  int fd = -1;
};

std::map<CUmemGenericAllocationHandle, Granule>& Granules() {
  static std::map<CUmemGenericAllocationHandle, Granule> granules;
  return granules;
}

int Descriptor(CUmemGenericAllocationHandle handle) {
  Granule& granule = Granules().at(handle);
  if (granule.fd >= 0) return granule.fd;
  granule.fd = memfd_create("granule", MFD_CLOEXEC);
  return ftruncate(granule.fd, static_cast<off_t>(granule.bytes)) == 0 ? granule.fd : -1;
}

std::map<void*, size_t>& Pinned() {
  static std::map<void*, size_t> pinned;
  return pinned;
}

// Of this thread. Stricter than the driver, which wants it of some calls only.
bool& DeviceIsCurrent() {
  thread_local bool current = false;
  return current;
}

bool Fails(const char* call) {
  DriverStandIn& driver = Driver();
  return driver.fail == call && driver.fail_after-- <= 0;
}

CUresult Granularity(size_t* granularity, const CUmemAllocationProp*,
                     CUmemAllocationGranularity_flags) {
  *granularity = Driver().granularity;
  return CUDA_SUCCESS;
}

CUresult Create(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp*,
                unsigned long long) {
  const std::lock_guard lock(Mutex());
  if (Fails("cuMemCreate")) return CUDA_ERROR_NOT_PERMITTED;
  if (size > Driver().free_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  static CUmemGenericAllocationHandle last = 0;
  *handle = ++last;
  Granules()[last].bytes = size;
  Driver().free_bytes -= size;
  ++Driver().handles;
  return CUDA_SUCCESS;
}

CUresult Release(CUmemGenericAllocationHandle handle) {
  const std::lock_guard lock(Mutex());
  const auto it = Granules().find(handle);
  if (it == Granules().end()) return CUDA_ERROR_INVALID_VALUE;
  Driver().free_bytes += it->second.bytes;
  --Driver().handles;
  if (it->second.fd >= 0) close(it->second.fd);
  Granules().erase(it);
  return CUDA_SUCCESS;
}

CUresult Reserve(CUdeviceptr* begin, size_t size, size_t, CUdeviceptr, unsigned long long) {
  const std::lock_guard lock(Mutex());
  if (Fails("cuMemAddressReserve")) return CUDA_ERROR_OUT_OF_MEMORY;
  void* data = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  ++Driver().reservations;
  *begin = reinterpret_cast<CUdeviceptr>(data);
  return CUDA_SUCCESS;
}

CUresult Unreserve(CUdeviceptr begin, size_t size) {
  const std::lock_guard lock(Mutex());
  --Driver().reservations;
  const auto it = Mapped().lower_bound(begin);
  if (it != Mapped().end() && it->first < begin + size) return CUDA_ERROR_INVALID_VALUE;
  return munmap(reinterpret_cast<void*>(begin), size) == 0 ? CUDA_SUCCESS
                                                           : CUDA_ERROR_INVALID_VALUE;
}

// Not readable before SetAccess, as on a device.
CUresult Map(CUdeviceptr begin, size_t size, size_t, CUmemGenericAllocationHandle handle,
             unsigned long long) {
  const std::lock_guard lock(Mutex());
  if (!DeviceIsCurrent()) return CUDA_ERROR_INVALID_CONTEXT;
  if (Fails("cuMemMap") || Mapped().count(begin) != 0) return CUDA_ERROR_INVALID_VALUE;
  void* data = mmap(reinterpret_cast<void*>(begin), size, PROT_NONE, MAP_SHARED | MAP_FIXED,
                    Descriptor(handle), 0);
  if (data == MAP_FAILED) return CUDA_ERROR_INVALID_VALUE;
  Mapped()[begin] = size;
  ++Driver().mappings;
  return CUDA_SUCCESS;
}

// Of exactly what one Map mapped.
CUresult Unmap(CUdeviceptr begin, size_t size) {
  const std::lock_guard lock(Mutex());
  const auto it = Mapped().find(begin);
  if (Fails("cuMemUnmap") || it == Mapped().end() || it->second != size) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Mapped().erase(it);
  --Driver().mappings;
  mmap(reinterpret_cast<void*>(begin), size, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return CUDA_SUCCESS;
}

CUresult SetAccess(CUdeviceptr begin, size_t size, const CUmemAccessDesc* access, size_t) {
  const std::lock_guard lock(Mutex());
  if (!DeviceIsCurrent()) return CUDA_ERROR_INVALID_CONTEXT;
  if (Fails("cuMemSetAccess")) return CUDA_ERROR_INVALID_VALUE;
  if (access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
  return mprotect(reinterpret_cast<void*>(begin), size, PROT_READ | PROT_WRITE) == 0
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_VALUE;
}

CUresult Share(void* out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
               unsigned long long) {
  const std::lock_guard lock(Mutex());
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
  const int fd = dup(Descriptor(handle));
  std::memcpy(out, &fd, sizeof(fd));
  return fd >= 0 ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult Describe(CUresult, const char** text) {
  *text = "the stand-in says no";
  return CUDA_SUCCESS;
}

const std::map<std::string, void*>& Functions() {
  static const std::map<std::string, void*> functions = {
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(&Granularity)},
      {"cuMemCreate", reinterpret_cast<void*>(&Create)},
      {"cuMemRelease", reinterpret_cast<void*>(&Release)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(&Reserve)},
      {"cuMemAddressFree", reinterpret_cast<void*>(&Unreserve)},
      {"cuMemMap", reinterpret_cast<void*>(&Map)},
      {"cuMemUnmap", reinterpret_cast<void*>(&Unmap)},
      {"cuMemSetAccess", reinterpret_cast<void*>(&SetAccess)},
      {"cuMemExportToShareableHandle", reinterpret_cast<void*>(&Share)},
      {"cuGetErrorString", reinterpret_cast<void*>(&Describe)},
  };
  return functions;
}

}  // namespace

uint64_t PinnedBytes() {
  const std::lock_guard lock(Mutex());
  return Driver().pinned_bytes;
}

DriverStandIn& Driver() {
  static DriverStandIn driver;
  return driver;
}

}  // namespace fq

// What kernels/memory calls of the runtime.
extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const auto it = fq::Functions().find(symbol);
  const bool found = fq::Driver().present && it != fq::Functions().end();
  *function = found ? it->second : nullptr;
  *result = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
  if (!fq::Driver().present) return cudaErrorInsufficientDriver;
  fq::DeviceIsCurrent() = true;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = fq::Driver().free_bytes;
  *total_bytes = uint64_t{80} << 30;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return "no driver"; }

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned int) {
  const std::lock_guard lock(fq::Mutex());
  fq::DriverStandIn& driver = fq::Driver();
  if (!fq::DeviceIsCurrent()) return cudaErrorDeviceUninitialized;
  if (driver.pinned_bytes + bytes > driver.pinned_limit_bytes) return cudaErrorMemoryAllocation;
  if (!fq::Pinned().emplace(data, bytes).second) return cudaErrorHostMemoryAlreadyRegistered;
  driver.pinned_bytes += bytes;
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* data) {
  const std::lock_guard lock(fq::Mutex());
  const auto it = fq::Pinned().find(data);
  if (it == fq::Pinned().end()) return cudaErrorHostMemoryNotRegistered;
  fq::Driver().pinned_bytes -= it->second;
  fq::Pinned().erase(it);
  return cudaSuccess;
}

}  // extern "C"
