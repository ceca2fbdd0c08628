// Where header, checksums and pages of a slab's extents lie (FORMAT.md section 4), for everything
// that writes or reads extents.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/codec_set.h"
#include "kernels/params.h"
#include "kernels/slab.h"
#include "kernels/slab_header.h"

namespace fq {

inline bool IsSinkBlock(const BlockId& id) { return id.index == 0; }

// InvalidArgument with the field and both values.
absl::Status InvalidSlab(absl::string_view field, uint64_t found, absl::string_view expected);

// Of the bytes before it.
uint64_t HeaderChecksum(const SlabHeader& header);

// The extents of one shape. Immutable; any thread.
class SlabLayout {
 public:
  using PageOffsets = std::vector<size_t>;  // [pages + 1], the last is the size of the extent

  // See SlabCodec::Create.
  static absl::StatusOr<SlabLayout> Create(const SlabShape& shape,
                                           std::shared_ptr<const CodecSet> codec_set);

  const SlabShape& shape() const { return shape_; }
  const CodecSet* codec_set() const { return codec_set_.get(); }  // or null

  // FailedPrecondition when the kind needs a codec set and there is none.
  absl::Status CheckKind(PageKind kind) const;

  // Of a kind that CheckKind accepts.
  const PageOffsets& Offsets(PageKind kind, bool sink) const { return offsets_[Slot(kind, sink)]; }
  SlabHeader MakeHeader(PageKind kind, const BlockId& id) const;

 private:
  SlabLayout(const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set);

  static size_t Slot(PageKind kind, bool sink) { return 2 * static_cast<size_t>(kind) + sink; }
  PageOffsets MakeOffsets(PageKind kind, bool sink) const;

  SlabShape shape_;
  std::shared_ptr<const CodecSet> codec_set_;  // shared with the layouts of other shapes
  PageOffsets offsets_[8];  // by Slot; empty for kinds that need a missing codec set
};

}  // namespace fq
