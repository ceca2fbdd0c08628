// Attention kernels compiled at run time for the profiles of a codec set, kept on disk.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/attend_source.h"

namespace fq {

// Machine code of `variant` for an architecture such as "sm_90a". Comes from `cache_folder` when it
// was compiled before by the same compiler from the same source, and is kept there; "" = no cache.
// A cache that cannot be read or written is not an error. Internal with the compiler's log when the
// source does not compile. Callable from any thread and process at once.
absl::StatusOr<std::vector<char>> CompileAttend(const AttendVariant& variant,
                                                const std::string& architecture,
                                                const std::string& cache_folder);

// The architecture name of the current device.
absl::StatusOr<std::string> DeviceArchitecture();

// Machine code loaded for the current device. Immutable after Load; callable from any thread.
class AttendKernel {
 public:
  // Compiles `variant` for the current device and loads it. Devices differ in shared memory: no
  // more tables are replicated than fit (attend_shared.h), nor than `variant` says.
  // FailedPrecondition where not even one does.
  static absl::StatusOr<std::unique_ptr<const AttendKernel>> Build(AttendVariant variant,
                                                                   const std::string& cache_folder);

  // `code` is that of CompileAttend for `variant` and this device.
  static absl::StatusOr<std::unique_ptr<const AttendKernel>> Load(const AttendVariant& variant,
                                                                  const std::vector<char>& code);
  ~AttendKernel();
  AttendKernel(const AttendKernel&) = delete;
  AttendKernel& operator=(const AttendKernel&) = delete;

  const void* function() const { return function_; }
  int head_size() const { return head_size_; }
  bool bf16() const { return bf16_; }
  int shared_bytes() const { return shared_bytes_; }
  int replicated_tables() const { return replicated_tables_; }

 private:
  AttendKernel() = default;
  cudaLibrary_t library_ = nullptr;
  const void* function_ = nullptr;
  int head_size_ = 0, shared_bytes_ = 0, replicated_tables_ = 0;
  bool bf16_ = false;
};

}  // namespace fq
