// What needs no GPU; device_node_test does the rest.
#include "kernels/cuda/cuda_device.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fq {
namespace {

using ::testing::HasSubstr;

TEST(OpenCudaDevice, NoSuchGpu_NotFound) {
  CudaDeviceOptions options;
  options.ordinal = 1000;
  const auto device = OpenCudaDevice(options);
  EXPECT_EQ(device.status().code(), absl::StatusCode::kNotFound) << device.status();
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("no GPU"));
}

TEST(OpenCudaDevice, PercentOutOfRange_NamesIt) {
  for (int percent : {-1, 0, 101}) {
    CudaDeviceOptions options;
    options.background_percent = percent;
    EXPECT_EQ(OpenCudaDevice(options).status().message(),
              "device: background_percent is " + std::to_string(percent) + ", expected 1..100");
  }
}

}  // namespace
}  // namespace fq
