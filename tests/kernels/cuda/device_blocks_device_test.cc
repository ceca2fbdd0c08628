// Ten thousand blocks in one call, against the CPU. Runs on a GPU.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/codec/float_convert.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/slab_layout.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

constexpr int kBlocks = 10000, kSources = 64, kD = 128;
constexpr SlabShape kShape{0, 2, 0, 2, kD, DType::kF16};
// Rows: [layer][block][K | V][token][head][d].
constexpr uint64_t kTokenBytes = 2 * 2 * kD, kSideBytes = 64 * kTokenBytes;
constexpr uint64_t kBlockBytes = 2 * kSideBytes;

// Device memory with a copy on the host.
class Mirror {
 public:
  Mirror(Device* device, DeviceQueue* queue, uint64_t bytes) : queue_(queue), host_(bytes) {
    constexpr uint64_t kGranule = uint64_t{64} << 20;
    reserved_ = (bytes + kGranule - 1) / kGranule * kGranule;
    space_ = Value(device->CreateSpace(reserved_));
    data_ = space_->Reserve(reserved_);
    FQ_CHECK(space_->Commit(data_, reserved_));
  }
  ~Mirror() { space_->Unreserve(data_, reserved_); }

  std::byte* device() const { return data_; }
  std::byte* host() { return host_.data(); }
  void ToDevice() {
    Check(queue_->CopyToDevice(data_, host_));
    Check(queue_->Finish());
  }
  void ToHost() {
    Check(queue_->CopyToHost(absl::MakeSpan(host_), data_));
    Check(queue_->Finish());
  }

 private:
  DeviceQueue* const queue_;
  std::vector<std::byte> host_;
  uint64_t reserved_;
  std::unique_ptr<MemorySpace> space_;
  std::byte* data_;
};

// Calls work(i) for i in [0, count) in all cores.
template <typename Work>
void InParallel(int count, const Work& work) {
  std::atomic<int> next{0};
  std::vector<std::thread> team;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    team.emplace_back([&] {
      for (int i; (i = next++) < count;) work(i);
    });
  }
  for (std::thread& thread : team) thread.join();
}

class DeviceBlocksTest : public testing::Test {
 protected:
  void SetUp() override {
    set_ = Value(CodecSet::Parse(BuildCodecSet(2, 2, kD, 21)));
    slabs_ = Value(SlabCodec::Create(kShape, set_, CpuBackend()));
    layout_ = std::make_unique<SlabLayout>(Value(SlabLayout::Create(kShape, set_)));
    device_ = Value(OpenCudaDevice({}));
    codec_ = Value(device_->CreateCodec(kShape, set_));
    queue_ = Value(device_->CreateQueue(true));
    source_ = std::make_unique<Mirror>(device_.get(), queue_.get(), 2 * kSources * kBlockBytes);
    target_ = std::make_unique<Mirror>(device_.get(), queue_.get(), 2 * kBlocks * kBlockBytes);
    FillSource();
    MakeBlocks();
  }

  void FillSource() {
    auto* halves = reinterpret_cast<uint16_t*>(source_->host());
    InParallel(2 * kSources, [&](int i) {
      std::vector<float> row(kD);
      for (int r = 0; r < 2 * 64 * 2; ++r) {  // side, token, head
        const int layer = i / kSources, head = r % 2;
        const HeadCodec& codec = r < 128 ? set_->k(layer, head) : set_->v(layer, head);
        MakeRow(codec, kD, 1000 * i + r, row.data());
        for (int c = 0; c < kD; ++c) {
          halves[(i * kBlockBytes / 2) + r * kD + c] = FloatToHalf(row[c]);
        }
      }
    });
    source_->ToDevice();
  }

  // Every fifth of another kind; some short, some sink blocks.
  void MakeBlocks() {
    blocks_.resize(kBlocks);
    uint64_t bytes = 0;
    for (int i = 0; i < kBlocks; ++i) {
      DeviceBlock& block = blocks_[i];
      block.id.key.fill(static_cast<uint8_t>(i));
      block.id.key[0] = static_cast<uint8_t>(i >> 8);
      block.id.index = i % 7 == 0 ? 0 : static_cast<uint32_t>(i);
      block.id.tokens = static_cast<uint16_t>(i % 11 == 0 ? 1 + i % 64 : 64);
      block.kind = i % 10 == 3   ? PageKind::kExact
                   : i % 10 == 7 ? PageKind::kUniversal
                                 : PageKind::kBase;
      block.primary = reinterpret_cast<std::byte*>(bytes);
      bytes += Align(Value(slabs_->ExtentBytes(block.kind, IsSinkBlock(block.id))));
      if (!Refined(i)) continue;
      block.refinement = reinterpret_cast<std::byte*>(bytes);
      bytes += Align(Value(slabs_->ExtentBytes(PageKind::kRefinement, IsSinkBlock(block.id))));
    }
    extents_ = std::make_unique<Mirror>(device_.get(), queue_.get(), bytes);
    for (int i = 0; i < kBlocks; ++i) {
      blocks_[i].primary = extents_->device() + reinterpret_cast<uint64_t>(blocks_[i].primary);
      if (!Refined(i)) continue;
      blocks_[i].refinement =
          extents_->device() + reinterpret_cast<uint64_t>(blocks_[i].refinement);
    }
  }
  static bool Refined(int i) { return i % 10 != 3 && i % 10 != 7 && i % 2 == 0; }
  static uint64_t Align(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

  // Rows in `mirror`, in which every layer has `blocks` blocks.
  static DeviceRows RowsIn(const Mirror& mirror, int blocks,
                           std::vector<DeviceRows::Layer>* layers) {
    for (int layer = 0; layer < 2; ++layer) {
      std::byte* begin = mirror.device() + layer * blocks * kBlockBytes;
      layers->push_back({begin, begin + kSideBytes});
    }
    DeviceRows rows;
    rows.layers = *layers;
    rows.token_stride = 2 * kD;
    rows.head_stride = kD;
    rows.tokens_per_chunk = 64;
    return rows;
  }
  void PointAt(bool source) {
    for (int i = 0; i < kBlocks; ++i) {
      const uint64_t block = source ? SourceOf(i) : i;
      blocks_[i].chunks[0] = static_cast<int32_t>(block * kBlockBytes / kChunkUnitBytes);
    }
  }
  static int SourceOf(int i) { return i * 13 % kSources; }

  template <typename Page, typename Byte>
  static std::vector<Page> Pages(Byte* rows, int blocks, int block) {
    std::vector<Page> pages(4);
    for (int i = 0; i < 4; ++i) {
      Byte* begin = rows + (i / 2 * blocks + block) * kBlockBytes + i % 2 * 2 * kD;
      pages[i].k.chunks[0] = begin;
      pages[i].v.chunks[0] = begin + kSideBytes;
      pages[i].k.token_stride = pages[i].v.token_stride = 2 * kD;
    }
    return pages;
  }

  absl::Span<std::byte> Extent(int i, PageKind kind) {
    std::byte* device = kind == PageKind::kRefinement ? blocks_[i].refinement : blocks_[i].primary;
    if (device == nullptr) return {};
    return absl::MakeSpan(extents_->host() + (device - extents_->device()),
                          Value(slabs_->ExtentBytes(kind, IsSinkBlock(blocks_[i].id))));
  }

  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<const SlabCodec> slabs_;
  std::unique_ptr<const SlabLayout> layout_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<const DeviceCodec> codec_;
  std::unique_ptr<DeviceQueue> queue_;
  std::unique_ptr<Mirror> source_, target_, extents_;
  std::vector<DeviceBlock> blocks_;
};

TEST_F(DeviceBlocksTest, TenThousand_EncodedAndDecoded_AsOnTheCpu) {
  std::vector<DeviceRows::Layer> source_layers, target_layers;
  const DeviceRows source = RowsIn(*source_, kSources, &source_layers);
  const DeviceRows target = RowsIn(*target_, kBlocks, &target_layers);
  PointAt(true);
  Check(queue_->Encode(*codec_, {&source, 1}, blocks_));
  Check(queue_->Finish());
  PointAt(false);
  std::vector<uint8_t> broken(kBlocks, 77);
  Check(queue_->Decode(*codec_, {&target, 1}, blocks_, absl::MakeSpan(broken)));
  Check(queue_->Finish());
  extents_->ToHost();
  target_->ToHost();

  std::atomic<int64_t> refused{0}, flagged{0}, differ{0}, bytes{0}, far{0};
  InParallel(kBlocks, [&](int i) {
    const DeviceBlock& block = blocks_[i];
    flagged += broken[i] != 0;
    const auto primary = Extent(i, block.kind), refinement = Extent(i, PageKind::kRefinement);
    refused += !slabs_->Verify(block.id, primary).ok();
    if (!refinement.empty()) refused += !slabs_->Verify(block.id, refinement).ok();
    std::vector<std::byte> own(primary.size()), own_refinement(refinement.size());
    Check(slabs_->Encode(block.kind, block.id,
                         Pages<SourcePage>(source_->host(), kSources, SourceOf(i)),
                         absl::MakeSpan(own), absl::MakeSpan(own_refinement)));
    const size_t begin = SlabPagesOffset(4);
    for (size_t b = begin; b < own.size(); ++b) differ += own[b] != primary[b];
    for (size_t b = begin; b < own_refinement.size(); ++b) {
      differ += own_refinement[b] != refinement[b];
    }
    bytes += own.size() + own_refinement.size();
    std::vector<std::byte> rows(2 * kBlockBytes);
    Check(slabs_->Decode(block.id, primary, refinement, Pages<TargetPage>(rows.data(), 1, 0)));
    for (int layer = 0; layer < 2; ++layer) {
      const auto* mine = reinterpret_cast<const uint16_t*>(rows.data() + layer * kBlockBytes);
      const auto* found = reinterpret_cast<const uint16_t*>(
          target_->host() + (uint64_t(layer) * kBlocks + i) * kBlockBytes);
      for (size_t v = 0; v < kBlockBytes / 2; ++v) {
        if (v % (kSideBytes / 2) / (kTokenBytes / 2) >= block.id.tokens) continue;
        const float a = HalfToFloat(mine[v]), b = HalfToFloat(found[v]);
        far += !(std::fabs(a - b) <= std::fabs(a) * 0x1p-10f + 6e-5f);
      }
    }
  });
  std::printf("%d blocks: %lld of %lld bytes differ from the CPU's\n", kBlocks,
              static_cast<long long>(differ.load()), static_cast<long long>(bytes.load()));
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(flagged, 0);
  EXPECT_EQ(far, 0);
  EXPECT_LE(differ, bytes / 1000);
}

}  // namespace
}  // namespace fq
