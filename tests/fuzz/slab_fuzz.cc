// SlabCodec::Verify and Decode on damaged extents. Any change of a valid extent must be noticed and
// must leave the target as it was; with repaired checksums nothing worse than odd values may
// follow.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/codec/checksum.h"
#include "kernels/slab.h"
#include "kernels/slab_header.h"
#include "tests/testing/codec_set_builder.h"

namespace {

constexpr int kHeadSize = 64;
constexpr int kTokens = 50;  // a partial block
constexpr size_t kRowsBytes = size_t{64} * kHeadSize * 2;
constexpr std::byte kUntouched{0xA5};

void Require(bool holds) {
  if (!holds) std::abort();
}

struct Case {
  fq::PageKind kind;
  fq::BlockId id;
  std::vector<std::byte> primary, refinement;
};

class World {
 public:
  World() {
    auto set = fq::CodecSet::Parse(fq::BuildCodecSet(1, 2, kHeadSize, 7));
    fq::SlabShape shape;
    shape.layer_end = 1;
    shape.head_end = 2;
    shape.head_size = kHeadSize;
    shape.dtype = fq::DType::kF16;
    codec_ = std::move(*fq::SlabCodec::Create(shape, *set, fq::CpuBackend()));
    for (fq::PageKind kind :
         {fq::PageKind::kExact, fq::PageKind::kBase, fq::PageKind::kUniversal}) {
      for (uint32_t index : {0u, 5u}) AddCase(kind, index);  // sink block or not
    }
  }

  const fq::SlabCodec& codec() const { return *codec_; }
  const Case& at(size_t i) const { return cases_[i % cases_.size()]; }

 private:
  void AddCase(fq::PageKind kind, uint32_t index) {
    std::vector<uint16_t> values(2 * 2 * kRowsBytes / 2);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(0x3000 + i % 1777);
    Case c{kind, {}, {}, {}};
    c.id.key.fill(static_cast<uint8_t>(0x40 + index));
    c.id.index = index;
    c.id.tokens = kTokens;
    c.primary.resize(*codec_->ExtentBytes(kind, index == 0));
    if (kind == fq::PageKind::kBase) {
      c.refinement.resize(*codec_->ExtentBytes(fq::PageKind::kRefinement, index == 0));
    }
    auto* bytes = reinterpret_cast<std::byte*>(values.data());
    std::vector<fq::SourcePage> pages = Pages<fq::SourcePage>(bytes);
    Require(
        codec_->Encode(kind, c.id, pages, absl::MakeSpan(c.primary), absl::MakeSpan(c.refinement))
            .ok());
    cases_.push_back(std::move(c));
  }

 public:
  template <typename Page>
  static std::vector<Page> Pages(std::byte* memory) {
    std::vector<Page> pages(2);
    for (Page& page : pages) {
      for (auto* rows : {&page.k, &page.v}) {
        rows->chunks[0] = memory;
        rows->token_stride = kHeadSize;
        memory += kRowsBytes;
      }
    }
    return pages;
  }

 private:
  std::unique_ptr<const fq::SlabCodec> codec_;
  std::vector<Case> cases_;
};

// Checksums that fit whatever the extent says now.
void Repair(std::vector<std::byte>& extent) {
  if (extent.size() < sizeof(fq::SlabHeader)) return;
  fq::SlabHeader header;
  std::memcpy(&header, extent.data(), sizeof(header));
  header.checksum = fq::Checksum(extent.data(), sizeof(header) - sizeof(uint64_t));
  std::memcpy(extent.data(), &header, sizeof(header));
  const size_t begin = fq::SlabPagesOffset(2);
  if (extent.size() <= begin) return;
  const size_t page_bytes = (extent.size() - begin) / 2 / 8 * 8;
  for (size_t i = 0; i < 2; ++i) {
    const uint64_t sum = fq::Checksum(extent.data() + begin + i * page_bytes, page_bytes);
    std::memcpy(extent.data() + sizeof(header) + i * sizeof(sum), &sum, sizeof(sum));
  }
}

// XORs pairs of (u16 place, u8 value) into the extent.
void Damage(std::vector<std::byte>& extent, const uint8_t* data, size_t size) {
  for (; size >= 3; data += 3, size -= 3) {
    uint16_t place;
    std::memcpy(&place, data, sizeof(place));
    extent[place % extent.size()] ^= std::byte{data[2]};
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* world = new World;
  if (size < 2) return 0;
  const Case& valid = world->at(data[0]);
  const uint8_t mode = data[1] % 4;
  data += 2, size -= 2;
  std::vector<std::byte> primary = valid.primary, refinement = valid.refinement;
  const bool hit_refinement = mode == 1 && !refinement.empty();
  std::vector<std::byte>& extent = hit_refinement ? refinement : primary;
  if (mode == 3) {  // bytes from nowhere, or cut short
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    extent.assign(bytes, bytes + size);
    extent.resize(size + (size < 64 ? 0 : size * 16));
  } else {
    Damage(extent, data, size);
  }
  if (mode == 2) Repair(extent);

  std::vector<std::byte> memory(4 * kRowsBytes, kUntouched);
  std::vector<fq::TargetPage> pages = World::Pages<fq::TargetPage>(memory.data());
  const bool same = extent == (hit_refinement ? valid.refinement : valid.primary);
  const bool sound = world->codec().Verify(valid.id, extent).ok();
  const bool decoded = world->codec().Decode(valid.id, primary, refinement, pages).ok();
  if (mode != 2) Require(sound == same && decoded == same);
  if (!decoded) Require(memory == std::vector<std::byte>(memory.size(), kUntouched));
  for (size_t token = kTokens; token < 64; ++token) {  // rows past the end are never delivered
    Require(memory[token * kHeadSize * 2] == kUntouched);
  }
  return 0;
}
