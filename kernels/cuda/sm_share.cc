#include "kernels/cuda/sm_share.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/memory/driver_call.h"

namespace fq {
namespace {

// The calls of the driver that this file makes.
struct Driver {
  decltype(cuDeviceGet)* device;
  decltype(cuDeviceGetDevResource)* resource;
  decltype(cuDevSmResourceSplitByCount)* split;
  decltype(cuDevResourceGenerateDesc)* describe;
  decltype(cuGreenCtxCreate)* create;
  decltype(cuGreenCtxDestroy)* destroy;
  decltype(cuGreenCtxStreamCreate)* stream;
};

absl::StatusOr<Driver> LookUpDriver() {
  Driver driver{};
  FQ_LOOK_UP(driver.device, cuDeviceGet, 2000);
  FQ_LOOK_UP(driver.resource, cuDeviceGetDevResource, 12040);
  FQ_LOOK_UP(driver.split, cuDevSmResourceSplitByCount, 12040);
  FQ_LOOK_UP(driver.describe, cuDevResourceGenerateDesc, 12040);
  FQ_LOOK_UP(driver.create, cuGreenCtxCreate, 12040);
  FQ_LOOK_UP(driver.destroy, cuGreenCtxDestroy, 12040);
  FQ_LOOK_UP(driver.stream, cuGreenCtxStreamCreate, 12050);
  return driver;
}

class GreenShare final : public SmShare {
 public:
  GreenShare(const Driver& driver, CUgreenCtx context, int multiprocessors)
      : driver_(driver), context_(context), multiprocessors_(multiprocessors) {}
  ~GreenShare() override { driver_.destroy(context_); }

  int multiprocessors() const override { return multiprocessors_; }

  absl::StatusOr<cudaStream_t> CreateStream(int priority) const override {
    CUstream stream = nullptr;
    FQ_RETURN_IF_ERROR(
        DriverStatus(driver_.stream(&stream, context_, CU_STREAM_NON_BLOCKING, priority),
                     "cuGreenCtxStreamCreate"));
    return stream;
  }

 private:
  const Driver driver_;
  const CUgreenCtx context_;
  const int multiprocessors_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const SmShare>> CreateSmShare(int percent) {
  FQ_ASSIGN_OR_RETURN(const Driver driver, LookUpDriver());
  int ordinal = 0;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDevice(&ordinal));
  FQ_RETURN_IF_CUDA_ERROR(cudaFree(nullptr));  // the primary context exists from here on
  CUdevice device;
  FQ_RETURN_IF_ERROR(DriverStatus(driver.device(&device, ordinal), "cuDeviceGet"));
  CUdevResource all{}, share{}, rest{};
  FQ_RETURN_IF_ERROR(DriverStatus(driver.resource(device, &all, CU_DEV_RESOURCE_TYPE_SM),
                                  "cuDeviceGetDevResource"));
  const unsigned wanted = (all.sm.smCount * static_cast<unsigned>(percent) + 99) / 100;
  unsigned groups = 1;
  FQ_RETURN_IF_ERROR(DriverStatus(driver.split(&share, &groups, &all, &rest, 0, wanted),
                                  "cuDevSmResourceSplitByCount"));
  CUdevResourceDesc description;
  FQ_RETURN_IF_ERROR(
      DriverStatus(driver.describe(&description, &share, 1), "cuDevResourceGenerateDesc"));
  CUgreenCtx context;
  FQ_RETURN_IF_ERROR(
      DriverStatus(driver.create(&context, description, device, CU_GREEN_CTX_DEFAULT_STREAM),
                   "cuGreenCtxCreate"));
  return std::make_unique<const GreenShare>(driver, context, static_cast<int>(share.sm.smCount));
}

}  // namespace fq
