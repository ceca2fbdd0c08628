// The queue and the codec of host_device.h.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/slab.h"

namespace fq {

// Faults that a test asks for. Any thread.
class HostFaults {
 public:
  void FailNextFinish(absl::Status status);
  void Lose();
  // Internal once lost.
  absl::Status Check() const;
  // What FailNextFinish was given, once; else Check.
  absl::Status TakeFinish();

 private:
  mutable std::mutex mutex_;
  absl::Status next_finish_;
  bool lost_ = false;
};

class HostCodec final : public DeviceCodec {
 public:
  explicit HostCodec(std::unique_ptr<const SlabCodec> slabs) : slabs_(std::move(slabs)) {}
  const SlabShape& shape() const override { return slabs_->shape(); }
  const SlabCodec& slabs() const { return *slabs_; }

 private:
  const std::unique_ptr<const SlabCodec> slabs_;
};

class HostQueue final : public DeviceQueue {
 public:
  explicit HostQueue(std::shared_ptr<HostFaults> faults) : faults_(std::move(faults)) {}

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
  using Work = std::vector<std::function<absl::Status()>>;
  absl::Status Queue(Work& to, std::function<absl::Status()> work);

  const std::shared_ptr<HostFaults> faults_;
  Work uploads_;  // done first
  Work queued_;
};

}  // namespace fq
