#include "kernels/slab_layout.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/checksum.h"
#include "kernels/codec/page_layout.h"
#include "kernels/page_bytes.h"

namespace fq {
namespace {

bool NeedsCodecSet(PageKind kind) {
  return kind == PageKind::kBase || kind == PageKind::kRefinement;
}

absl::Status CheckFits(const SlabShape& shape, const CodecSet& codec_set) {
  if (shape.layer_end > codec_set.layers()) {
    return InvalidSlab("layer_end", shape.layer_end,
                       absl::StrCat("at most ", codec_set.layers(), " of the codec set"));
  }
  if (shape.head_end > codec_set.kv_heads()) {
    return InvalidSlab("head_end", shape.head_end,
                       absl::StrCat("at most ", codec_set.kv_heads(), " of the codec set"));
  }
  if (shape.head_size == codec_set.head_size()) return absl::OkStatus();
  return InvalidSlab("head_size", shape.head_size,
                     absl::StrCat(codec_set.head_size(), " of the codec set"));
}

absl::Status CheckShape(const SlabShape& shape) {
  if (shape.layer_begin >= shape.layer_end) {
    return InvalidSlab("layer_end", shape.layer_end,
                       absl::StrCat("more than layer_begin ", shape.layer_begin));
  }
  if (shape.head_begin >= shape.head_end) {
    return InvalidSlab("head_end", shape.head_end,
                       absl::StrCat("more than head_begin ", shape.head_begin));
  }
  if (!IsHeadSize(shape.head_size)) {
    return InvalidSlab("head_size", shape.head_size, "64, 96, 128 or 256");
  }
  if (static_cast<uint8_t>(shape.dtype) > static_cast<uint8_t>(DType::kF32)) {
    return InvalidSlab("element type", static_cast<uint8_t>(shape.dtype), "0..2");
  }
  constexpr int kMaxPages = 1 << 20;  // 65,535 layers x 65,535 heads would not be a model
  if (static_cast<int64_t>(shape.layers()) * shape.heads() > kMaxPages) {
    return InvalidSlab("pages", static_cast<uint64_t>(shape.layers()) * shape.heads(),
                       absl::StrCat("at most ", kMaxPages));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status InvalidSlab(absl::string_view field, uint64_t found, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("slab: ", field, " is ", found, ", expected ", expected));
}

uint64_t HeaderChecksum(const SlabHeader& header) {
  return Checksum(reinterpret_cast<const std::byte*>(&header), offsetof(SlabHeader, checksum));
}

absl::StatusOr<SlabLayout> SlabLayout::Create(const SlabShape& shape,
                                              std::shared_ptr<const CodecSet> codec_set) {
  FQ_RETURN_IF_ERROR(CheckShape(shape));
  if (codec_set != nullptr) FQ_RETURN_IF_ERROR(CheckFits(shape, *codec_set));
  return SlabLayout(shape, std::move(codec_set));
}

SlabLayout::SlabLayout(const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set)
    : shape_(shape), codec_set_(std::move(codec_set)) {
  for (PageKind kind :
       {PageKind::kExact, PageKind::kBase, PageKind::kRefinement, PageKind::kUniversal}) {
    if (NeedsCodecSet(kind) && codec_set_ == nullptr) continue;
    for (bool sink : {false, true}) offsets_[Slot(kind, sink)] = MakeOffsets(kind, sink);
  }
}

SlabLayout::PageOffsets SlabLayout::MakeOffsets(PageKind kind, bool sink) const {
  PageOffsets offsets;
  size_t offset = SlabPagesOffset(shape_.pages());
  for (int i = 0; i < shape_.pages(); ++i) {
    offsets.push_back(offset);
    const CodecProfile* profile =
        codec_set_ == nullptr ? nullptr : &codec_set_->profile(shape_.LayerOf(i), shape_.HeadOf(i));
    offset += PageBytes({kind, shape_.dtype, shape_.head_size, sink}, profile);
  }
  offsets.push_back(offset);
  return offsets;
}

absl::Status SlabLayout::CheckKind(PageKind kind) const {
  if (static_cast<uint8_t>(kind) > static_cast<uint8_t>(PageKind::kUniversal)) {
    return InvalidSlab("page kind", static_cast<uint8_t>(kind), "0..3");
  }
  if (!NeedsCodecSet(kind) || codec_set_ != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "slab: compact and near-lossless need a codec set (codec_set_id), and there is none");
}

SlabHeader SlabLayout::MakeHeader(PageKind kind, const BlockId& id) const {
  SlabHeader header{};
  header.magic = kSlabMagic;
  header.version = kSlabVersion;
  header.kind = static_cast<uint8_t>(kind);
  header.flags = IsSinkBlock(id) ? kSlabFlagSink : 0;
  header.layer_begin = shape_.layer_begin;
  header.layer_end = shape_.layer_end;
  header.head_begin = shape_.head_begin;
  header.head_end = shape_.head_end;
  header.tokens = id.tokens;
  header.head_size = shape_.head_size;
  header.dtype = static_cast<uint8_t>(shape_.dtype);
  header.page_count = shape_.pages();
  header.block_index = id.index;
  const PageOffsets& offsets = Offsets(kind, IsSinkBlock(id));
  header.payload_bytes = offsets.back() - offsets.front();
  std::copy(id.key.begin(), id.key.end(), header.block_key);
  if (NeedsCodecSet(kind)) {
    std::copy(codec_set_->id().begin(), codec_set_->id().end(), header.codec_set_id);
  }
  header.checksum = HeaderChecksum(header);
  return header;
}

}  // namespace fq
