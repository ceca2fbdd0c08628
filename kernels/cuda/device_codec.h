// The slabs of one shape on a GPU: DeviceCodec's CUDA side.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/slab_jobs.h"
#include "kernels/device.h"
#include "kernels/slab_layout.h"

namespace fq {

class CudaCodec final : public DeviceCodec {
 public:
  // Puts the page offsets on the current device. `coders` are those of the layout's codec set, null
  // without one.
  static absl::StatusOr<std::unique_ptr<const CudaCodec>> Create(
      SlabLayout layout, std::shared_ptr<const CoderTables> coders);

  const SlabShape& shape() const override { return layout_.shape(); }
  const SlabLayout& layout() const { return layout_; }
  const CoderTables* coders() const { return coders_.get(); }
  // With primary pages of `kind`.
  SlabPages PagesOf(PageKind kind) const;

 private:
  CudaCodec(SlabLayout layout, std::shared_ptr<const CoderTables> coders, DeviceBuffer offsets)
      : layout_(std::move(layout)), coders_(std::move(coders)), offsets_(std::move(offsets)) {}

  const uint64_t* OffsetsOf(PageKind kind, bool sink) const;

  const SlabLayout layout_;
  const std::shared_ptr<const CoderTables> coders_;
  const DeviceBuffer offsets_;  // u64 [kind][sink][pages]
};

}  // namespace fq
