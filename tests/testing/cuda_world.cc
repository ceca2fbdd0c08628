// A GPU and a worker process beside it.
#include <cstdlib>

#include "kernels/cuda/cuda_device.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/cuda_worker.h"

namespace fq {
namespace {

// Device and worker start once: that takes a second.
class CudaWorld final : public DeviceWorld {
 public:
  Device& device() override {
    static const std::unique_ptr<Device> device = Value(OpenCudaDevice(Options()));
    return *device;
  }
  Worker& worker() override {
    static CudaWorker worker;
    return worker;
  }

 private:
  static CudaDeviceOptions Options() {
    CudaDeviceOptions options;
    options.with_lists = std::getenv("FQ_TEST_WITHOUT_LISTS") == nullptr;  // slow under racecheck
    return options;
  }
};

}  // namespace

std::unique_ptr<DeviceWorld> CreateDeviceWorld() { return std::make_unique<CudaWorld>(); }

}  // namespace fq
