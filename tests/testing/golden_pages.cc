#include "tests/testing/golden_pages.h"

#include <cstring>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/codec_set.h"
#include "kernels/page_bytes.h"
#include "kernels/slab.h"
#include "nlohmann/json.hpp"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/page_buffer.h"
#include "tests/testing/reference_codec.h"

namespace fq {
namespace {

using Json = nlohmann::json;

constexpr const char* kDTypeNames[] = {"f16", "bf16", "f32"};
constexpr const char* kKindNames[] = {"exact", "base", "refinement", "universal"};
constexpr uint64_t kSeed = 64;
// Codec sets of larger heads would be most of the tree; their pages are golden, their values are
// not.
constexpr int kStoredHeadSizeMax = 128;

// One page of rows, coded in every way.
struct Case {
  int head_size;
  DType dtype;
  int head;  // of the codec set: chooses the profile
  int tokens;
  bool sink;
};

template <typename T>
std::vector<std::byte> BytesOf(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

class Writer {
 public:
  explicit Writer(const Backend& backend) : backend_(backend) {}

  std::vector<GoldenFile> Run() {
    for (int d : {64, 96, 128, 256}) {
      const std::vector<std::byte> file = BuildCodecSet(1, d == 64 ? 2 : 1, d, kSeed);
      set_ = CodecSet::Parse(file).value();
      set_name_ = d <= kStoredHeadSizeMax ? "codec_set_d" + std::to_string(d) + ".fqcs" : "";
      if (!set_name_.empty()) files_.push_back({set_name_, file});
      AddCase({d, DType::kF16, 0, 64, false});
      AddCase({d, DType::kBF16, 0, 17, true});
      AddCase({d, DType::kF32, d == 64 ? 1 : 0, 64, true});
      if (d == 64) AddSlab();
    }
    const std::string text = manifest_.dump(1) + "\n";
    files_.push_back({"manifest.json", BytesOf(std::vector<char>(text.begin(), text.end()))});
    return std::move(files_);
  }

 private:
  void AddCase(const Case& page) {
    PageBuffer k = MakeSide(page, set_->k(0, page.head), 1);
    PageBuffer v = MakeSide(page, set_->v(0, page.head), 1001);
    const SourcePage source{k.source(), v.source()};
    // Exact pages are copies: one size shows all there is, and 17 tokens show the zero rows.
    if (page.head_size == 64) AddPage(page, PageKind::kExact, source);
    AddPage(page, PageKind::kBase, source);
    AddPage(page, PageKind::kUniversal, source);
  }

  // The primary extent of a sink block: two heads, so two pages of different size.
  void AddSlab() {
    const SlabShape shape{0, 1, 0, 2, 64, DType::kF16};
    const auto codec = SlabCodec::Create(shape, set_, &backend_).value();
    BlockId id;
    for (size_t i = 0; i < id.key.size(); ++i) id.key[i] = static_cast<uint8_t>(i);
    id.tokens = 33;
    std::vector<PageBuffer> sides;
    std::vector<SourcePage> pages;
    for (int head : {0, 1}) {
      const Case page{64, DType::kF16, head, id.tokens, true};
      sides.push_back(MakeSide(page, set_->k(0, head), 1));
      sides.push_back(MakeSide(page, set_->v(0, head), 1001));
    }
    for (int head : {0, 1})
      pages.push_back({sides[2 * head].source(), sides[2 * head + 1].source()});
    std::vector<std::byte> extent(codec->ExtentBytes(PageKind::kBase, true).value());
    FQ_CHECK(codec->Encode(PageKind::kBase, id, pages, absl::MakeSpan(extent), {}).ok());
    files_.push_back({"slab_d64.bin", extent});
  }

  static PageBuffer MakeSide(const Case& page, const HeadCodec& codec, uint64_t seed) {
    PageBuffer side(page.dtype, page.head_size, {});
    std::vector<float> row(page.head_size);
    for (int t = 0; t < kBlockTokens; ++t) {
      MakeRow(codec, page.head_size, kSeed * 1000000 + seed + t, row.data());
      for (int c = 0; c < page.head_size; ++c) side.Set(t, c, row[c]);
    }
    return side;
  }

  std::vector<std::byte> Room(const Case& page, PageKind kind) const {
    return std::vector<std::byte>(
        PageBytes({kind, page.dtype, page.head_size, page.sink}, &set_->profile(0, page.head)));
  }

  void AddPage(const Case& page, PageKind kind, const SourcePage& source) {
    std::vector<std::byte> primary = Room(page, kind), refinement;
    if (kind == PageKind::kBase) refinement = Room(page, PageKind::kRefinement);
    EncodeTask task;
    task.kind = kind;
    task.source = source;
    task.head = page.head;
    task.tokens = page.tokens;
    task.sink = page.sink;
    task.primary = primary.data();
    task.refinement = refinement.empty() ? nullptr : refinement.data();
    FQ_CHECK(backend_.Encode({set_.get(), page.head_size, page.dtype}, {task}).ok());
    ReferencePage reference;
    reference.kind = kind;
    reference.head_size = page.head_size;
    reference.dtype = page.dtype;
    reference.primary = primary.data();
    reference.codec_set = set_.get();
    reference.head = page.head;
    Record(page, kind, primary, reference);
    if (refinement.empty()) return;
    reference.refinement = refinement.data();
    Record(page, PageKind::kRefinement, refinement, reference);
  }

  static std::string NameOf(const Case& page, PageKind kind) {
    return std::string(kKindNames[static_cast<int>(kind)]) + "_d" + std::to_string(page.head_size) +
           "_" + kDTypeNames[static_cast<int>(page.dtype)];
  }

  void Record(const Case& page, PageKind kind, const std::vector<std::byte>& bytes,
              const ReferencePage& reference) {
    const std::string name = NameOf(page, kind);
    const bool coded = kind == PageKind::kBase || kind == PageKind::kRefinement;
    const bool with_values = kind != PageKind::kExact && !set_name_.empty() &&
                             (page.dtype == DType::kF16 || page.head_size == 64);
    Json entry = {{"name", name},
                  {"file", name + ".bin"},
                  {"kind", kKindNames[static_cast<int>(kind)]},
                  {"head_size", page.head_size},
                  {"dtype", kDTypeNames[static_cast<int>(page.dtype)]},
                  {"tokens", page.tokens},
                  {"sink", page.sink},
                  {"layer", 0},
                  {"head", page.head},
                  {"codec_set", coded ? set_name_ : ""},
                  {"base_file", ""},
                  {"values", with_values ? name + ".values.bin" : ""}};
    if (kind == PageKind::kRefinement) entry["base_file"] = NameOf(page, PageKind::kBase) + ".bin";
    manifest_.push_back(entry);
    files_.push_back({name + ".bin", bytes});
    if (with_values) files_.push_back({entry["values"], BytesOf(ReferenceCoded(reference))});
  }

  const Backend& backend_;
  std::shared_ptr<const CodecSet> set_;
  std::string set_name_;
  std::vector<GoldenFile> files_;
  Json manifest_ = Json::array();
};

}  // namespace

std::vector<GoldenFile> MakeGoldenFiles(const Backend& backend) { return Writer(backend).Run(); }

}  // namespace fq
