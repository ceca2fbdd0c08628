// What every Device does with slabs: encode out of a worker's memory, decode into it, refuse what
// is broken. The CPU's SlabCodec says what is right.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/row_address.h"
#include "kernels/slab_header.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/device_world.h"
#include "tests/testing/row_tolerance.h"

namespace fq {
namespace {

constexpr int kLayers = 3, kHeads = 3, kChunks = 40;
constexpr std::byte kGuard{0xA5};

// A worker's cache: [layer][chunk][K | V][token][head][head_size + 8], the same on the host.
struct Cache {
  Cache(const SlabShape& shape, int tokens_per_chunk, int gap)
      : shape(shape), tokens_per_chunk(tokens_per_chunk), head_stride(shape.head_size + gap) {
    bytes.assign(LayerBytes() * shape.layers(), kGuard);
  }

  int64_t token_stride() const { return head_stride * shape.heads(); }
  uint64_t SideBytes() const {
    return uint64_t(tokens_per_chunk) * token_stride() * ElementBytes(shape.dtype);
  }
  uint64_t ChunkBytes() const {
    return (2 * SideBytes() + kChunkUnitBytes - 1) / kChunkUnitBytes * kChunkUnitBytes;
  }
  uint64_t LayerBytes() const { return ChunkBytes() * kChunks; }

  // The pages of a block in `memory`, which lies like this cache.
  template <typename Page, typename Byte>
  std::vector<Page> Pages(Byte* memory, const DeviceBlock& block) const {
    std::vector<Page> pages(shape.pages());
    for (int i = 0; i < shape.pages(); ++i) {
      const int layer = i / shape.heads(), head = i % shape.heads();
      for (int side = 0; side < 2; ++side) {
        auto& rows = side == 0 ? pages[i].k : pages[i].v;
        rows.tokens_per_chunk = tokens_per_chunk;
        rows.first_token = block.first_token;
        rows.token_stride = token_stride();
        for (int c = 0; c <= (block.first_token + block.id.tokens - 1) / tokens_per_chunk; ++c) {
          rows.chunks[c] = memory + layer * LayerBytes() + kChunkUnitBytes * block.chunks[c] +
                           side * SideBytes() + head * head_stride * ElementBytes(shape.dtype);
        }
      }
    }
    return pages;
  }

  const SlabShape shape;
  const int tokens_per_chunk;
  const int64_t head_stride;
  std::vector<std::byte> bytes;
};

class DeviceCodingTest : public testing::TestWithParam<SlabShape> {
 protected:
  struct Block {
    DeviceBlock device;
    uint64_t primary_bytes = 0, refinement_bytes = 0;
  };

  void SetUp() override {
    world_ = CreateDeviceWorld();
    set_ = *CodecSet::Parse(BuildCodecSet(kLayers, kHeads, shape().head_size, 11));
    slabs_ = Value(SlabCodec::Create(shape(), set_, CpuBackend()));
    codec_ = Value(world_->device().CreateCodec(shape(), set_));
    queue_ = Value(world_->device().CreateQueue(true));
    caches_.emplace_back(shape(), 16, 8);
    caches_.emplace_back(shape(), 128, 16);
    for (Cache& cache : caches_) {
      memories_.push_back(world_->worker().Allocate(kind(), cache.bytes.size()));
      mappings_.push_back(Value(world_->device().Map(memories_.back()->Share())));
    }
    MakeRows();
    MakeBlocks();
    space_ = Value(world_->device().CreateSpace(kSpaceBytes));
    extents_ = space_->Reserve(kSpaceBytes);
    ASSERT_TRUE(space_->Commit(extents_, kSpaceBytes));
    PlaceExtents();
  }

  void TearDown() override {
    queue_.reset();
    if (space_ != nullptr) space_->Unreserve(extents_, kSpaceBytes);
  }

  template <typename T>
  static T Value(absl::StatusOr<T> value) {
    if (!value.ok()) throw std::runtime_error(value.status().ToString());
    return std::move(*value);
  }
  static void Check(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

  const SlabShape& shape() const { return GetParam(); }
  static ShareKind kind() { return ShareKind::kFileDescriptor; }

  void MakeRows() {
    for (size_t i = 0; i < caches_.size(); ++i) {
      Cache& cache = caches_[i];
      DeviceRows rows;
      for (int layer = 0; layer < shape().layers(); ++layer) {
        std::byte* begin = mappings_[i]->data() + layer * cache.LayerBytes();
        layers_[i].push_back({begin, begin + cache.SideBytes()});
      }
      rows.layers = layers_[i];
      rows.token_stride = cache.token_stride();
      rows.head_stride = cache.head_stride;
      rows.tokens_per_chunk = cache.tokens_per_chunk;
      rows_.push_back(rows);
    }
  }

  void AddBlock(PageKind kind, bool refined, uint32_t index, uint16_t tokens, int rows,
                int first_token) {
    Block block;
    block.device.id.key.fill(static_cast<uint8_t>(blocks_.size() + 1));
    block.device.id.index = index;
    block.device.id.tokens = tokens;
    block.device.kind = kind;
    block.device.rows = rows;
    block.device.first_token = first_token;
    const Cache& cache = caches_[rows];
    const int count =
        (first_token + kBlockTokens + cache.tokens_per_chunk - 1) / cache.tokens_per_chunk;
    for (int i = 0; i < count; ++i) {
      const int chunk = (7 * next_chunk_++ + 3) % kChunks;  // each once
      block.device.chunks[i] = static_cast<int32_t>(chunk * cache.ChunkBytes() / kChunkUnitBytes);
    }
    block.primary_bytes = Value(slabs_->ExtentBytes(kind, index == 0));
    if (refined)
      block.refinement_bytes = Value(slabs_->ExtentBytes(PageKind::kRefinement, index == 0));
    blocks_.push_back(block);
    FillBlock(blocks_.back().device);
  }

  // Every kind, sink and not, short and whole, kinds in turns.
  void MakeBlocks() {
    AddBlock(PageKind::kBase, true, 0, 64, 0, 0);
    AddBlock(PageKind::kExact, false, 4, 37, 1, 64);
    AddBlock(PageKind::kBase, false, 3, 64, 1, 30);
    AddBlock(PageKind::kUniversal, false, 0, 10, 0, 5);
    AddBlock(PageKind::kBase, true, 7, 17, 0, 11);
    AddBlock(PageKind::kUniversal, false, 9, 64, 1, 0);
    AddBlock(PageKind::kBase, false, 0, 64, 0, 0);
    AddBlock(PageKind::kExact, false, 0, 64, 0, 0);
  }

  void FillBlock(const DeviceBlock& block) {
    Cache& cache = caches_[block.rows];
    auto pages = cache.Pages<TargetPage>(cache.bytes.data(), block);
    std::vector<float> row(shape().head_size);
    for (int i = 0; i < shape().pages(); ++i) {
      for (int t = 0; t < 2 * block.id.tokens; ++t) {
        const bool k = t < block.id.tokens;
        const int layer = shape().LayerOf(i), head = shape().HeadOf(i);
        MakeRow(k ? set_->k(layer, head) : set_->v(layer, head), shape().head_size, ++seed_,
                row.data());
        std::byte* to = RowAddress(k ? pages[i].k : pages[i].v, t % block.id.tokens,
                                   ElementBytes(shape().dtype));
        for (int c = 0; c < shape().head_size; ++c) {
          StoreElement(shape().dtype, row[c], to + c * ElementBytes(shape().dtype));
        }
      }
    }
  }

  void PlaceExtents() {
    std::byte* at = extents_;
    const auto place = [&](uint64_t bytes) {
      std::byte* extent = at;
      at += (bytes + 64 + 63) / 64 * 64;  // and a guard between them
      return extent;
    };
    for (Block& block : blocks_) {
      block.device.primary = place(block.primary_bytes);
      if (block.refinement_bytes != 0) block.device.refinement = place(block.refinement_bytes);
    }
    ASSERT_LE(at, extents_ + kSpaceBytes);
    ToDevice(extents_, std::vector<std::byte>(at - extents_, kGuard));
    end_ = at;
  }

  std::vector<DeviceBlock> Blocks() const {
    std::vector<DeviceBlock> blocks;
    for (const Block& block : blocks_) blocks.push_back(block.device);
    return blocks;
  }

  void ToDevice(std::byte* to, const std::vector<std::byte>& bytes) {
    Check(queue_->CopyToDevice(to, bytes));
    Check(queue_->Finish());
  }
  std::vector<std::byte> FromDevice(const std::byte* from, uint64_t bytes) {
    std::vector<std::byte> host(bytes);
    Check(queue_->CopyToHost(absl::MakeSpan(host), from));
    Check(queue_->Finish());
    return host;
  }

  void WriteCaches() {
    for (size_t i = 0; i < caches_.size(); ++i) memories_[i]->Write(0, caches_[i].bytes);
  }

  // The CPU's extents of a block.
  void EncodeOnCpu(const Block& block, std::vector<std::byte>* primary,
                   std::vector<std::byte>* refinement) {
    const Cache& cache = caches_[block.device.rows];
    primary->assign(block.primary_bytes, kGuard);
    refinement->assign(block.refinement_bytes, kGuard);
    Check(slabs_->Encode(block.device.kind, block.device.id,
                         cache.Pages<SourcePage>(cache.bytes.data(), block.device),
                         absl::MakeSpan(*primary), absl::MakeSpan(*refinement)));
  }
  void PutCpuExtents() {
    for (const Block& block : blocks_) {
      std::vector<std::byte> primary, refinement;
      EncodeOnCpu(block, &primary, &refinement);
      ToDevice(block.device.primary, primary);
      if (!refinement.empty()) ToDevice(block.device.refinement, refinement);
    }
  }

  // Flags of the blocks after decoding into guard bytes.
  std::vector<uint8_t> Decode() {
    for (size_t i = 0; i < caches_.size(); ++i) {
      memories_[i]->Write(0, std::vector<std::byte>(caches_[i].bytes.size(), kGuard));
    }
    const std::vector<DeviceBlock> blocks = Blocks();
    std::vector<uint8_t> broken(blocks.size(), 77);
    Check(queue_->Decode(*codec_, rows_, blocks, absl::MakeSpan(broken)));
    Check(queue_->Finish());
    return broken;
  }

  // Compares the caches with what the CPU decodes of the extents on the device; memory of blocks in
  // `skip` may hold anything.
  void ExpectDecoded(const std::vector<uint8_t>& skip) {
    for (size_t c = 0; c < caches_.size(); ++c) {
      const Cache& cache = caches_[c];
      std::vector<std::byte> expected(cache.bytes.size(), kGuard);
      std::vector<std::byte> ignored(cache.bytes.size(), std::byte{0});
      for (size_t i = 0; i < blocks_.size(); ++i) {
        if (blocks_[i].device.rows != static_cast<int>(c)) continue;
        if (skip[i] != 0) {
          MarkRows(cache, blocks_[i].device, &ignored);
        } else {
          DecodeOnCpu(blocks_[i], &expected);
        }
      }
      ExpectNear(cache, memories_[c]->Read(0, cache.bytes.size()), expected, ignored);
    }
  }

  void MarkRows(const Cache& cache, const DeviceBlock& block, std::vector<std::byte>* memory) {
    const size_t bytes = size_t(shape().head_size) * ElementBytes(shape().dtype);
    for (const TargetPage& page : cache.Pages<TargetPage>(memory->data(), block)) {
      for (int t = 0; t < block.id.tokens; ++t) {
        std::memset(RowAddress(page.k, t, ElementBytes(shape().dtype)), 1, bytes);
        std::memset(RowAddress(page.v, t, ElementBytes(shape().dtype)), 1, bytes);
      }
    }
  }

  void DecodeOnCpu(const Block& block, std::vector<std::byte>* memory) {
    const auto primary = FromDevice(block.device.primary, block.primary_bytes);
    const auto refinement = block.refinement_bytes == 0
                                ? std::vector<std::byte>()
                                : FromDevice(block.device.refinement, block.refinement_bytes);
    Check(
        slabs_->Decode(block.device.id, primary, refinement,
                       caches_[block.device.rows].Pages<TargetPage>(memory->data(), block.device)));
  }

  void ExpectNear(const Cache& cache, const std::vector<std::byte>& found,
                  const std::vector<std::byte>& expected, const std::vector<std::byte>& ignored) {
    const int bytes = ElementBytes(cache.shape.dtype);
    for (size_t i = 0; i < expected.size(); i += bytes) {
      if (ignored[i] != std::byte{0}) continue;
      if (std::equal(&found[i], &found[i] + bytes, &expected[i])) continue;
      const double was = LoadElement(cache.shape.dtype, &expected[i]);
      ASSERT_NEAR(LoadElement(cache.shape.dtype, &found[i]), was,
                  RowTolerance(cache.shape.dtype, was, 1, true))
          << "byte " << i;
    }
  }

  // Flips a bit at an address on the device, decodes, flips it back.
  std::vector<uint8_t> DecodeFlipped(std::byte* at) {
    std::vector<std::byte> byte = FromDevice(at, 1);
    byte[0] ^= std::byte{4};
    ToDevice(at, byte);
    const std::vector<uint8_t> broken = Decode();
    byte[0] ^= std::byte{4};
    ToDevice(at, byte);
    return broken;
  }

  static constexpr uint64_t kSpaceBytes = uint64_t{2} << 20;

  std::unique_ptr<DeviceWorld> world_;
  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<const SlabCodec> slabs_;
  std::unique_ptr<const DeviceCodec> codec_;
  std::vector<Cache> caches_;
  std::vector<std::unique_ptr<WorkerMemory>> memories_;
  std::vector<std::unique_ptr<DeviceMapping>> mappings_;
  std::vector<DeviceRows::Layer> layers_[2];
  std::vector<DeviceRows> rows_;
  std::vector<Block> blocks_;
  std::unique_ptr<MemorySpace> space_;
  std::byte* extents_ = nullptr;
  std::byte* end_ = nullptr;
  std::unique_ptr<DeviceQueue> queue_;
  int next_chunk_ = 0;
  uint64_t seed_ = 0;
};

// Rows of words and of odd bytes, one row and many, more than the staging buffer holds at first.
TEST_P(DeviceCodingTest, Fetch_RowsOneBehindTheOther) {
  std::vector<std::byte> memory(kSpaceBytes);
  for (size_t i = 0; i < memory.size(); ++i)
    memory[i] = static_cast<std::byte>(i * 2654435761u >> 9);
  ToDevice(extents_, memory);
  struct Part {
    uint64_t offset;
    uint32_t row_bytes, rows;
    uint64_t stride_bytes;
  };
  const Part parts[] = {{0, 256, 16, 512}, {48, 16, 1, 0},        {3, 7, 5, 11},
                        {64, 1001, 1, 0},  {4096, 1500000, 1, 0}, {16, 32, 3, 40}};
  std::vector<std::vector<std::byte>> found, expected;
  std::vector<DeviceFetch> fetches;
  for (const Part& part : parts) {
    expected.emplace_back();
    for (uint32_t row = 0; row < part.rows; ++row) {
      const std::byte* from = memory.data() + part.offset + row * part.stride_bytes;
      expected.back().insert(expected.back().end(), from, from + part.row_bytes);
    }
    found.emplace_back(expected.back().size());
    fetches.push_back({found.back().data(), extents_ + part.offset, part.row_bytes, part.rows,
                       part.stride_bytes});
  }
  Check(queue_->Fetch({}));
  Check(queue_->Fetch(fetches));
  Check(queue_->Finish());
  EXPECT_EQ(found, expected);
}

TEST_P(DeviceCodingTest, Encode_MixedBlocks_WholeExtentsAsOfTheCpu) {
  WriteCaches();
  const std::vector<DeviceBlock> blocks = Blocks();
  Check(queue_->Encode(*codec_, rows_, blocks));
  Check(queue_->Finish());
  for (const Block& block : blocks_) {
    std::vector<std::byte> expected[2];
    EncodeOnCpu(block, &expected[0], &expected[1]);
    const std::byte* extents[] = {block.device.primary, block.device.refinement};
    for (int i = 0; i < 2; ++i) {
      if (expected[i].empty()) continue;
      const auto found = FromDevice(extents[i], expected[i].size());
      EXPECT_TRUE(slabs_->Verify(block.device.id, found).ok())
          << slabs_->Verify(block.device.id, found);
      const size_t pages = SlabPagesOffset(shape().pages());
      size_t differ = 0;
      for (size_t b = pages; b < found.size(); ++b) differ += found[b] != expected[i][b];
      const bool coded = block.device.kind == PageKind::kBase;
      // FP32 rows meet the GPU's transform as FP16, sums have another order.
      const size_t parts = shape().dtype == DType::kF32 ? 50 : 500;
      EXPECT_LE(differ, coded ? (found.size() - pages) / parts : 0);
    }
  }
}

TEST_P(DeviceCodingTest, Encode_MixedBlocks_NothingBesideTheExtents) {
  WriteCaches();
  const std::vector<DeviceBlock> blocks = Blocks();
  Check(queue_->Encode(*codec_, rows_, blocks));
  Check(queue_->Finish());
  std::vector<std::byte> memory = FromDevice(extents_, end_ - extents_);
  for (const Block& block : blocks_) {
    std::fill_n(memory.begin() + (block.device.primary - extents_), block.primary_bytes, kGuard);
    if (block.device.refinement == nullptr) continue;
    std::fill_n(memory.begin() + (block.device.refinement - extents_), block.refinement_bytes,
                kGuard);
  }
  EXPECT_EQ(std::count(memory.begin(), memory.end(), kGuard), end_ - extents_);
  for (size_t i = 0; i < caches_.size(); ++i) {
    EXPECT_TRUE(memories_[i]->Read(0, caches_[i].bytes.size()) == caches_[i].bytes);
  }
}

TEST_P(DeviceCodingTest, Decode_ExtentsOfTheCpu_RowsAndNothingBeside) {
  PutCpuExtents();
  const std::vector<uint8_t> broken = Decode();
  EXPECT_EQ(broken, std::vector<uint8_t>(blocks_.size(), 0));
  ExpectDecoded(broken);
}

TEST_P(DeviceCodingTest, Decode_BaseOfRefinedBlock_CompactRows) {
  PutCpuExtents();
  for (Block& block : blocks_) {
    block.device.refinement = nullptr;
    block.refinement_bytes = 0;
  }
  const std::vector<uint8_t> broken = Decode();
  EXPECT_EQ(broken, std::vector<uint8_t>(blocks_.size(), 0));
  ExpectDecoded(broken);
}

TEST_P(DeviceCodingTest, Decode_QueuedBehindEncode_SeesItsExtents) {
  WriteCaches();
  const std::vector<DeviceBlock> blocks = Blocks();
  std::vector<uint8_t> broken(blocks.size(), 77);
  Check(queue_->Encode(*codec_, rows_, blocks));
  Check(queue_->Decode(*codec_, rows_, blocks, absl::MakeSpan(broken)));
  Check(queue_->Finish());
  EXPECT_EQ(broken, std::vector<uint8_t>(blocks_.size(), 0));
  ExpectDecoded(broken);
}

TEST_P(DeviceCodingTest, Decode_AnyFlippedBit_OnlyItsBlockIsBroken) {
  PutCpuExtents();
  for (size_t i : {0, 1, 3, 4}) {
    const Block& block = blocks_[i];
    std::vector<uint8_t> expected(blocks_.size(), 0);
    for (const bool refinement : {false, true}) {
      if (refinement && block.device.refinement == nullptr) continue;
      std::byte* extent = refinement ? block.device.refinement : block.device.primary;
      const size_t bytes = refinement ? block.refinement_bytes : block.primary_bytes;
      const size_t table = sizeof(SlabHeader), padding = table + 8 * shape().pages();
      std::vector<size_t> offsets = {
          0, 6, 60, 127, table, padding - 1, SlabPagesOffset(shape().pages()), bytes - 1};
      if (padding < SlabPagesOffset(shape().pages())) offsets.push_back(padding);
      for (const size_t offset : offsets) {
        const std::vector<uint8_t> broken = DecodeFlipped(extent + offset);
        for (size_t b = 0; b < broken.size(); ++b) {
          EXPECT_EQ(broken[b] != 0, b == i) << "block " << b << ", byte " << offset << " of block "
                                            << i << (refinement ? "'s refinement" : "");
        }
        ExpectDecoded(broken);
      }
    }
  }
}

TEST_P(DeviceCodingTest, Decode_OtherIdThanWritten_Broken) {
  PutCpuExtents();
  blocks_[0].device.id.key[31] ^= 1;
  blocks_[1].device.id.index += 1;
  blocks_[2].device.id.tokens = 63;
  const std::vector<uint8_t> broken = Decode();
  for (size_t i = 0; i < broken.size(); ++i) EXPECT_EQ(broken[i] != 0, i < 3) << "block " << i;
}

TEST_P(DeviceCodingTest, Decode_OtherKindThanWritten_Broken) {
  PutCpuExtents();
  std::swap(blocks_[2].device.primary, blocks_[5].device.primary);
  const std::vector<uint8_t> broken = Decode();
  for (size_t i = 0; i < broken.size(); ++i) {
    EXPECT_EQ(broken[i] != 0, i == 2 || i == 5) << "block " << i;
  }
}

TEST_P(DeviceCodingTest, NoBlocks_NothingDone) {
  WriteCaches();
  Check(queue_->Encode(*codec_, rows_, {}));
  Check(queue_->Decode(*codec_, rows_, {}, {}));
  Check(queue_->Finish());
  EXPECT_TRUE(FromDevice(extents_, end_ - extents_) ==
              std::vector<std::byte>(end_ - extents_, kGuard));
}

TEST_P(DeviceCodingTest, CopyToDevice_OddLengths_ComeBack) {
  for (size_t bytes : {1, 63, 4097, 100000}) {
    std::vector<std::byte> out(bytes);
    for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 7);
    ToDevice(extents_ + 3, out);
    EXPECT_TRUE(FromDevice(extents_ + 3, bytes) == out);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeviceCodingTest,
                         testing::Values(SlabShape{1, 3, 0, 2, 64, DType::kF16},
                                         SlabShape{0, 1, 1, 3, 128, DType::kBF16},
                                         SlabShape{0, 2, 0, 1, 64, DType::kF32}),
                         [](const auto& info) {
                           return "d" + std::to_string(info.param.head_size) + "t" +
                                  std::to_string(static_cast<int>(info.param.dtype));
                         });

}  // namespace
}  // namespace fq
