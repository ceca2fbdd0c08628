// A queue with something to do whenever its work is waited for, as while copies are on their way.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "kernels/device.h"

namespace fq {

class HookedQueue final : public DeviceQueue {
 public:
  HookedQueue(std::unique_ptr<DeviceQueue> queue, std::function<void()> hook)
      : queue_(std::move(queue)), hook_(std::move(hook)) {}

  absl::Status Encode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                      absl::Span<const DeviceBlock> blocks) override {
    return queue_->Encode(codec, rows, blocks);
  }
  absl::Status Decode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                      absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) override {
    return queue_->Decode(codec, rows, blocks, broken);
  }
  absl::Status Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) override {
    return queue_->Sum(regions, sums);
  }
  absl::Status CopyToHost(absl::Span<std::byte> host, const std::byte* device) override {
    return queue_->CopyToHost(host, device);
  }
  absl::Status CopyToDevice(std::byte* device, absl::Span<const std::byte> host) override {
    return queue_->CopyToDevice(device, host);
  }
  absl::Status Fetch(absl::Span<const DeviceFetch> parts) override { return queue_->Fetch(parts); }
  absl::Status Finish() override {
    hook_();
    return queue_->Finish();
  }

 private:
  const std::unique_ptr<DeviceQueue> queue_;
  const std::function<void()> hook_;
};

}  // namespace fq
