// DeviceQueue on a CUDA stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/device_codec.h"
#include "kernels/cuda/host_staging.h"
#include "kernels/device.h"

namespace fq {

class CudaQueue final : public DeviceQueue {
 public:
  // Owns `stream` (non-blocking, of device `ordinal`) from here on, also when this fails.
  static absl::StatusOr<std::unique_ptr<CudaQueue>> Create(int ordinal, cudaStream_t stream);
  // Waits for what is queued.
  ~CudaQueue() override;

  // Codecs are CudaCodecs.
  absl::Status Encode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                      absl::Span<const DeviceBlock> blocks) override;
  absl::Status Decode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                      absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) override;
  absl::Status Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) override;
  absl::Status CopyToHost(absl::Span<std::byte> host, const std::byte* device) override;
  absl::Status CopyToDevice(std::byte* device, absl::Span<const std::byte> host) override;
  absl::Status Fetch(absl::Span<const DeviceFetch> parts) override;
  absl::Status Finish() override;

 private:
  // Blocks [begin, end) of a call, in the order of its launches: one kind, all or none refined.
  struct Group {
    PageKind kind;
    bool refined;
    size_t begin, end;
  };
  // What a call has on the device, and where its flags are.
  struct Call {
    const CudaCodec* codec;
    std::vector<Group> groups;
    const SlabBlock* blocks;
    const SlabHead* heads;
    int head_count;
    RowSets rows;
    uint8_t* broken;  // pinned memory
  };
  // For the caller once the stream has come by: out of the staging buffer.
  struct Result {
    const void* from;
    void* to;
    size_t bytes;
  };
  // Sums likewise, of pieces at first.
  struct Sums {
    const uint64_t* from;
    absl::Span<const DeviceRegion> regions;
    absl::Span<uint64_t> to;
  };

  CudaQueue(int ordinal, cudaStream_t stream) : ordinal_(ordinal), stream_(stream) {}

  absl::StatusOr<Call> Upload(const CudaCodec& codec, absl::Span<const DeviceRows> rows,
                              absl::Span<const DeviceBlock> blocks);
  template <typename Code>
  absl::Status CodeGroups(const Call& call, const Code& code);
  absl::StatusOr<size_t> Stage(size_t bytes);
  absl::Status AwaitUploads();
  absl::Status ReserveJobs(size_t count);
  absl::Status Drain();
  absl::Status AwaitStream();

  const int ordinal_;
  const cudaStream_t stream_;
  cudaEvent_t done_ = nullptr;
  // Copies to the device have a stream of their own, made when it is first needed: they and kernels
  // run at the same time.
  cudaStream_t upload_stream_ = nullptr;
  cudaEvent_t uploaded_ = nullptr;
  bool uploading_ = false;  // since stream_ last waited for uploads
  HostStaging staging_;
  size_t staged_ = 0;  // bytes in use
  DeviceBuffer jobs_;
  std::vector<Result> results_;
  std::vector<Sums> sums_;
};

}  // namespace fq
