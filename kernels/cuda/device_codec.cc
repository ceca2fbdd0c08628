#include "kernels/cuda/device_codec.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace fq {

absl::StatusOr<std::unique_ptr<const CudaCodec>> CudaCodec::Create(
    SlabLayout layout, std::shared_ptr<const CoderTables> coders) {
  std::vector<uint64_t> offsets;
  for (int kind = 0; kind < 4; ++kind) {
    for (bool sink : {false, true}) {
      const auto& own = layout.Offsets(static_cast<PageKind>(kind), sink);
      std::vector<uint64_t> pages(layout.shape().pages());
      std::copy_n(own.begin(), std::min(own.size(), pages.size()), pages.begin());
      offsets.insert(offsets.end(), pages.begin(), pages.end());
    }
  }
  FQ_ASSIGN_OR_RETURN(DeviceBuffer device,
                      DeviceBuffer::CopyOf(offsets.data(), offsets.size() * sizeof(uint64_t)));
  return std::unique_ptr<const CudaCodec>(
      new CudaCodec(std::move(layout), std::move(coders), std::move(device)));
}

const uint64_t* CudaCodec::OffsetsOf(PageKind kind, bool sink) const {
  return offsets_.as<uint64_t>() +
         (2 * static_cast<size_t>(kind) + (sink ? 1 : 0)) * shape().pages();
}

SlabPages CudaCodec::PagesOf(PageKind kind) const {
  SlabPages pages;
  pages.layers = shape().layers();
  pages.heads = shape().heads();
  if (layout_.codec_set() != nullptr) pages.layer_coders = layout_.codec_set()->kv_heads();
  pages.first_coder = shape().layer_begin * pages.layer_coders + shape().head_begin;
  for (bool sink : {false, true}) {
    pages.primary_offsets[sink ? 1 : 0] = OffsetsOf(kind, sink);
    pages.refinement_offsets[sink ? 1 : 0] = OffsetsOf(PageKind::kRefinement, sink);
  }
  return pages;
}

}  // namespace fq
