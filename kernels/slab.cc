#include "kernels/slab.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/checksum.h"
#include "kernels/codec/page_layout.h"
#include "kernels/slab_header.h"
#include "kernels/slab_layout.h"

namespace fq {
namespace {

bool IsPrimary(PageKind kind) { return kind != PageKind::kRefinement; }

std::string Hex(const uint8_t* bytes, size_t count) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes), count});
}

absl::Status Differs(absl::string_view field, absl::string_view found, absl::string_view expected) {
  return absl::DataLossError(absl::StrCat("slab: ", field, " is ", found, ", expected ", expected));
}

absl::Status ExpectEqual(absl::string_view field, uint64_t found, uint64_t expected) {
  if (found == expected) return absl::OkStatus();
  return Differs(field, absl::StrCat(found), absl::StrCat(expected));
}

absl::Status ExpectBytes(absl::string_view field, const uint8_t* found, const uint8_t* expected) {
  if (std::memcmp(found, expected, 32) == 0) return absl::OkStatus();
  return Differs(field, Hex(found, 32), Hex(expected, 32));
}

// Whether every chunk that `tokens` rows reach exists.
template <typename Byte>
absl::Status CheckRows(const Rows<Byte>& rows, int tokens) {
  if (rows.tokens_per_chunk < 1) return InvalidSlab("tokens_per_chunk", 0, "at least 1");
  if (rows.first_token < 0 || rows.first_token >= rows.tokens_per_chunk) {
    return InvalidSlab("first_token", rows.first_token,
                       absl::StrCat("below tokens_per_chunk ", rows.tokens_per_chunk));
  }
  const int64_t end = static_cast<int64_t>(rows.first_token) + tokens;
  const int64_t chunks = (end + rows.tokens_per_chunk - 1) / rows.tokens_per_chunk;
  if (chunks > kMaxChunks)
    return InvalidSlab("chunks", chunks, absl::StrCat("at most ", kMaxChunks));
  for (int64_t i = 0; i < chunks; ++i) {
    if (rows.chunks[i] == nullptr) return InvalidSlab("chunks", i, "pointers for all tokens");
  }
  return absl::OkStatus();
}

template <typename Page>
absl::Status CheckPages(absl::Span<const Page> pages, int page_count, const BlockId& id) {
  if (pages.size() != static_cast<size_t>(page_count)) {
    return InvalidSlab("pages", pages.size(), absl::StrCat(page_count, " of the shape"));
  }
  if (id.tokens < 1 || id.tokens > kBlockTokens) return InvalidSlab("tokens", id.tokens, "1..64");
  for (const Page& page : pages) {
    FQ_RETURN_IF_ERROR(CheckRows(page.k, id.tokens));
    FQ_RETURN_IF_ERROR(CheckRows(page.v, id.tokens));
  }
  return absl::OkStatus();
}

class SlabCodecOfBackend final : public SlabCodec {
 public:
  SlabCodecOfBackend(SlabLayout layout, const Backend* backend)
      : layout_(std::move(layout)), backend_(backend) {
    context_.codec_set = layout_.codec_set();
    context_.head_size = shape().head_size;
    context_.dtype = shape().dtype;
  }

  const SlabShape& shape() const override { return layout_.shape(); }

  absl::StatusOr<size_t> ExtentBytes(PageKind kind, bool sink) const override {
    FQ_RETURN_IF_ERROR(layout_.CheckKind(kind));
    return Offsets(kind, sink).back();
  }

  absl::StatusOr<BytesInExtent> PageInExtent(PageKind kind, bool sink, int page) const override {
    FQ_RETURN_IF_ERROR(layout_.CheckKind(kind));
    FQ_RETURN_IF_ERROR(CheckPage(page));
    const PageOffsets& offsets = Offsets(kind, sink);
    return BytesInExtent{offsets[page], offsets[page + 1] - offsets[page]};
  }

  absl::Status Encode(PageKind kind, const BlockId& id, absl::Span<const SourcePage> pages,
                      absl::Span<std::byte> primary,
                      absl::Span<std::byte> refinement) const override {
    FQ_RETURN_IF_ERROR(CheckEncode(kind, id, pages, primary.size(), refinement.size()));
    const bool sink = IsSinkBlock(id);
    std::vector<EncodeTask> tasks(pages.size());
    for (size_t i = 0; i < pages.size(); ++i) {
      EncodeTask& task = tasks[i];
      task.kind = kind;
      task.source = pages[i];
      task.layer = LayerOf(i);
      task.head = HeadOf(i);
      task.tokens = id.tokens;
      task.sink = sink;
      task.primary = primary.data() + Offsets(kind, sink)[i];
      if (!refinement.empty()) {
        task.refinement = refinement.data() + Offsets(PageKind::kRefinement, sink)[i];
      }
    }
    FQ_RETURN_IF_ERROR(backend_->Encode(context_, tasks));
    WriteHeader(kind, id, primary);
    if (!refinement.empty()) WriteHeader(PageKind::kRefinement, id, refinement);
    return absl::OkStatus();
  }

  absl::Status Verify(const BlockId& id, absl::Span<const std::byte> extent) const override {
    if (id.tokens < 1 || id.tokens > kBlockTokens) return InvalidSlab("tokens", id.tokens, "1..64");
    SlabHeader header;
    if (extent.size() < sizeof(header)) {
      return Differs("length", absl::StrCat(extent.size()), "at least 128");
    }
    std::memcpy(&header, extent.data(), sizeof(header));
    FQ_RETURN_IF_ERROR(VerifyHeader(id, header));
    return VerifyPages(static_cast<PageKind>(header.kind), IsSinkBlock(id), extent);
  }

  absl::StatusOr<PageKind> VerifyBlock(const BlockId& id, absl::Span<const std::byte> primary,
                                       absl::Span<const std::byte> refinement) const override {
    FQ_RETURN_IF_ERROR(Verify(id, primary));
    const PageKind kind = KindOf(primary);
    if (!IsPrimary(kind)) return Differs("page kind of the primary extent", "2", "0, 1 or 3");
    if (refinement.empty()) return kind;
    FQ_RETURN_IF_ERROR(Verify(id, refinement));
    if (kind != PageKind::kBase || KindOf(refinement) != PageKind::kRefinement) {
      return Differs(
          "page kinds of the two extents",
          absl::StrCat(static_cast<int>(kind), " and ", static_cast<int>(KindOf(refinement))),
          "1 and 2");
    }
    return kind;
  }

  absl::Status Decode(const BlockId& id, absl::Span<const std::byte> primary,
                      absl::Span<const std::byte> refinement,
                      absl::Span<const TargetPage> pages) const override {
    FQ_RETURN_IF_ERROR(CheckPages(pages, shape().pages(), id));
    FQ_ASSIGN_OR_RETURN(const PageKind kind, VerifyBlock(id, primary, refinement));
    const bool sink = IsSinkBlock(id);
    std::vector<DecodeTask> tasks(pages.size());
    for (size_t i = 0; i < pages.size(); ++i) {
      DecodeTask& task = tasks[i];
      task.kind = kind;
      task.primary = primary.data() + Offsets(kind, sink)[i];
      task.refinement = RefinementPage(refinement, sink, i);
      task.target = pages[i];
      task.layer = LayerOf(i);
      task.head = HeadOf(i);
      task.tokens = id.tokens;
      task.sink = sink;
    }
    return backend_->Decode(context_, tasks);
  }

  absl::StatusOr<PageError> MeasureError(const BlockId& id, int page, const SourcePage& source,
                                         absl::Span<const std::byte> primary,
                                         absl::Span<const std::byte> refinement) const override {
    FQ_RETURN_IF_ERROR(layout_.CheckKind(PageKind::kBase));
    FQ_RETURN_IF_ERROR(CheckPage(page));
    FQ_RETURN_IF_ERROR(CheckPages(absl::MakeConstSpan(&source, 1), 1, id));
    FQ_RETURN_IF_ERROR(CheckLengths(PageKind::kBase, id, primary.size(), refinement.size()));
    const bool sink = IsSinkBlock(id);
    ErrorTask task;
    task.source = source;
    task.layer = LayerOf(page);
    task.head = HeadOf(page);
    task.tokens = id.tokens;
    task.sink = sink;
    task.primary = primary.data() + Offsets(PageKind::kBase, sink)[page];
    task.refinement = RefinementPage(refinement, sink, page);
    return fq::MeasureError(context_, task);
  }

  absl::Status Attend(absl::Span<const EncodedBlock> blocks,
                      const AttendParams& params) const override {
    FQ_RETURN_IF_ERROR(CheckAttend(params));
    std::vector<PageKind> kinds;
    for (const EncodedBlock& block : blocks) {
      FQ_ASSIGN_OR_RETURN(const PageKind kind,
                          VerifyBlock(block.id, block.primary, block.refinement));
      kinds.push_back(kind);
    }
    std::vector<AttendTask::Page> pages(shape().heads() * blocks.size());
    std::vector<AttendTask> tasks(shape().heads());
    for (int head = 0; head < shape().heads(); ++head) {
      const size_t index = (params.layer - shape().layer_begin) * shape().heads() + head;
      AttendTask::Page* head_pages = pages.data() + head * blocks.size();
      for (size_t i = 0; i < blocks.size(); ++i) {
        head_pages[i] = PageOf(blocks[i], kinds[i], index);
      }
      tasks[head] = TaskOf(params, head);
      tasks[head].pages = absl::MakeConstSpan(head_pages, blocks.size());
    }
    return backend_->Attend(context_, tasks);
  }

 private:
  using PageOffsets = SlabLayout::PageOffsets;

  const PageOffsets& Offsets(PageKind kind, bool sink) const { return layout_.Offsets(kind, sink); }

  int LayerOf(size_t page) const { return shape().LayerOf(static_cast<int>(page)); }
  int HeadOf(size_t page) const { return shape().HeadOf(static_cast<int>(page)); }

  absl::Status CheckPage(int page) const {
    if (page >= 0 && page < shape().pages()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("slab: page is ", page, ", expected 0..", shape().pages() - 1));
  }

  absl::Status CheckEncode(PageKind kind, const BlockId& id, absl::Span<const SourcePage> pages,
                           size_t primary_bytes, size_t refinement_bytes) const {
    FQ_RETURN_IF_ERROR(layout_.CheckKind(kind));
    if (!IsPrimary(kind)) return InvalidSlab("page kind of a primary extent", 2, "0, 1 or 3");
    FQ_RETURN_IF_ERROR(CheckPages(pages, shape().pages(), id));
    return CheckLengths(kind, id, primary_bytes, refinement_bytes);
  }

  // Bytes of the extents of a block; none of refinement is none.
  absl::Status CheckLengths(PageKind kind, const BlockId& id, size_t primary_bytes,
                            size_t refinement_bytes) const {
    const bool sink = IsSinkBlock(id);
    if (primary_bytes != Offsets(kind, sink).back()) {
      return InvalidSlab("bytes of the primary extent", primary_bytes,
                         absl::StrCat(Offsets(kind, sink).back()));
    }
    if (refinement_bytes == 0) return absl::OkStatus();
    if (kind != PageKind::kBase) {
      return InvalidSlab("page kind beside a refinement", static_cast<uint8_t>(kind), "1 (base)");
    }
    if (refinement_bytes == Offsets(PageKind::kRefinement, sink).back()) return absl::OkStatus();
    return InvalidSlab("bytes of the refinement extent", refinement_bytes,
                       absl::StrCat(Offsets(PageKind::kRefinement, sink).back()));
  }

  absl::Status CheckAttend(const AttendParams& params) const {
    if (params.layer < shape().layer_begin || params.layer >= shape().layer_end) {
      return absl::InvalidArgumentError(absl::StrCat("attend: layer is ", params.layer,
                                                     ", expected ", shape().layer_begin, "..",
                                                     shape().layer_end - 1));
    }
    if (params.q_heads_per_kv_head < 1 || params.q_heads_per_kv_head > kMaxQueryHeads) {
      return absl::InvalidArgumentError(absl::StrCat("attend: q_heads_per_kv_head is ",
                                                     params.q_heads_per_kv_head, ", expected 1..",
                                                     kMaxQueryHeads));
    }
    if (params.q != nullptr && params.out != nullptr && params.lse != nullptr) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("attend: q, out or lse is null, expected an array");
  }

  // Header and page checksums; the pages are already there.
  void WriteHeader(PageKind kind, const BlockId& id, absl::Span<std::byte> extent) const {
    const SlabHeader header = layout_.MakeHeader(kind, id);
    const PageOffsets& offsets = Offsets(kind, IsSinkBlock(id));
    std::memset(extent.data(), 0, offsets.front());
    std::memcpy(extent.data(), &header, sizeof(header));
    for (int i = 0; i < shape().pages(); ++i) {
      const uint64_t checksum = Checksum(extent.data() + offsets[i], offsets[i + 1] - offsets[i]);
      std::memcpy(extent.data() + sizeof(header) + sizeof(checksum) * i, &checksum,
                  sizeof(checksum));
    }
  }

  // Every field that can differ is named before the whole is compared, so that the error says
  // which.
  absl::Status VerifyHeader(const BlockId& id, const SlabHeader& header) const {
    FQ_RETURN_IF_ERROR(ExpectEqual("magic", header.magic, kSlabMagic));
    FQ_RETURN_IF_ERROR(ExpectEqual("version", header.version, kSlabVersion));
    FQ_RETURN_IF_ERROR(ExpectEqual("header checksum", header.checksum, HeaderChecksum(header)));
    if (const absl::Status kind = layout_.CheckKind(static_cast<PageKind>(header.kind));
        !kind.ok()) {
      return absl::DataLossError(kind.message());
    }
    const SlabHeader expected = layout_.MakeHeader(static_cast<PageKind>(header.kind), id);
    FQ_RETURN_IF_ERROR(ExpectBytes("block key", header.block_key, expected.block_key));
    FQ_RETURN_IF_ERROR(ExpectBytes("codec set id", header.codec_set_id, expected.codec_set_id));
    FQ_RETURN_IF_ERROR(ExpectEqual("block index", header.block_index, expected.block_index));
    FQ_RETURN_IF_ERROR(ExpectEqual("flags", header.flags, expected.flags));
    FQ_RETURN_IF_ERROR(ExpectEqual("tokens", header.tokens, expected.tokens));
    FQ_RETURN_IF_ERROR(ExpectEqual("layer_begin", header.layer_begin, expected.layer_begin));
    FQ_RETURN_IF_ERROR(ExpectEqual("layer_end", header.layer_end, expected.layer_end));
    FQ_RETURN_IF_ERROR(ExpectEqual("head_begin", header.head_begin, expected.head_begin));
    FQ_RETURN_IF_ERROR(ExpectEqual("head_end", header.head_end, expected.head_end));
    FQ_RETURN_IF_ERROR(ExpectEqual("head size", header.head_size, expected.head_size));
    FQ_RETURN_IF_ERROR(ExpectEqual("element type", header.dtype, expected.dtype));
    FQ_RETURN_IF_ERROR(ExpectEqual("page count", header.page_count, expected.page_count));
    FQ_RETURN_IF_ERROR(ExpectEqual("bytes of pages", header.payload_bytes, expected.payload_bytes));
    if (std::memcmp(&header, &expected, sizeof(header)) == 0) return absl::OkStatus();
    return Differs("a reserved field", "not zero", "zero");
  }

  absl::Status VerifyPages(PageKind kind, bool sink, absl::Span<const std::byte> extent) const {
    const PageOffsets& offsets = Offsets(kind, sink);
    FQ_RETURN_IF_ERROR(ExpectEqual("length", extent.size(), offsets.back()));
    const std::byte* checksums = extent.data() + sizeof(SlabHeader);
    for (int i = 0; i < shape().pages(); ++i) {
      uint64_t stored;
      std::memcpy(&stored, checksums + sizeof(stored) * i, sizeof(stored));
      const uint64_t found = Checksum(extent.data() + offsets[i], offsets[i + 1] - offsets[i]);
      FQ_RETURN_IF_ERROR(ExpectEqual(absl::StrCat("checksum of page ", i), found, stored));
    }
    const size_t padding = sizeof(SlabHeader) + sizeof(uint64_t) * shape().pages();
    const bool zero = std::all_of(extent.begin() + padding, extent.begin() + offsets.front(),
                                  [](std::byte byte) { return byte == std::byte{0}; });
    return zero ? absl::OkStatus() : Differs("padding before the pages", "not zero", "zero");
  }

  static PageKind KindOf(absl::Span<const std::byte> extent) {
    return static_cast<PageKind>(extent[offsetof(SlabHeader, kind)]);
  }

  const std::byte* RefinementPage(absl::Span<const std::byte> refinement, bool sink,
                                  size_t page) const {
    if (refinement.empty()) return nullptr;
    return refinement.data() + Offsets(PageKind::kRefinement, sink)[page];
  }

  AttendTask::Page PageOf(const EncodedBlock& block, PageKind kind, size_t page) const {
    const bool sink = IsSinkBlock(block.id);
    return {kind, block.primary.data() + Offsets(kind, sink)[page],
            RefinementPage(block.refinement, sink, page), block.id.tokens, sink};
  }

  AttendTask TaskOf(const AttendParams& params, int head) const {
    const size_t first = static_cast<size_t>(head) * params.q_heads_per_kv_head;
    AttendTask task;
    task.layer = params.layer;
    task.head = shape().head_begin + head;
    task.q_heads = params.q_heads_per_kv_head;
    task.scale = params.scale;
    task.q = params.q + first * shape().head_size;
    task.out = params.out + first * shape().head_size;
    task.lse = params.lse + first;
    return task;
  }

  const SlabLayout layout_;
  const Backend* const backend_;
  Backend::Context context_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const SlabCodec>> SlabCodec::Create(
    const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set, const Backend* backend) {
  FQ_CHECK(backend != nullptr);
  FQ_ASSIGN_OR_RETURN(SlabLayout layout, SlabLayout::Create(shape, std::move(codec_set)));
  return std::make_unique<const SlabCodecOfBackend>(std::move(layout), backend);
}

absl::Status Attend(const SlabCodec& codec, absl::Span<const EncodedBlock> blocks,
                    const AttendParams& params) {
  return codec.Attend(blocks, params);
}

}  // namespace fq
