// What every Device says of sums: those of the words, wherever a region is cut into pieces.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/codec/word_sum.h"
#include "tests/testing/device_world.h"

namespace fq {
namespace {

uint64_t SumOf(absl::Span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + 8 * i, 8);
    sum += WordSumTerm(i, word);
  }
  return sum;
}

// Regions of one word pair, just below, at and above what a warp takes, and many pieces long; at
// odd places; two calls before one Finish.
TEST(DeviceSums, OfRegions_AreThoseOfTheirWords) {
  const auto world = CreateDeviceWorld();
  constexpr uint64_t kBytes = uint64_t{1} << 20, kPiece = uint64_t{32} << 10;
  std::vector<std::byte> bytes(kBytes);
  std::mt19937_64 random(11);
  for (uint64_t i = 0; i < kBytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(&bytes[i], &word, 8);
  }
  const auto memory = world->worker().Allocate(ShareKind::kFileDescriptor, kBytes);
  memory->Write(0, bytes);
  const auto mapping = world->device().Map(memory->Share());
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  std::vector<DeviceRegion> regions;
  std::vector<uint64_t> expected;
  uint64_t offset = 16;
  for (uint64_t length : {uint64_t{16}, uint64_t{48}, kPiece - 16, kPiece, kPiece + 16, 4 * kPiece,
                          5 * kPiece + 4096 + 16}) {
    regions.push_back({(*mapping)->data() + offset, length});
    expected.push_back(SumOf(absl::MakeConstSpan(bytes).subspan(offset, length)));
    offset += 64;
  }
  const auto queue = *world->device().CreateQueue(true);
  std::vector<uint64_t> sums(regions.size()), again(2);
  ASSERT_TRUE(queue->Sum(regions, absl::MakeSpan(sums)).ok());
  ASSERT_TRUE(queue->Sum({}, {}).ok());
  ASSERT_TRUE(queue->Sum(absl::MakeSpan(regions).first(2), absl::MakeSpan(again)).ok());
  const absl::Status finished = queue->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
  EXPECT_EQ(sums, expected);
  EXPECT_EQ(again[1], expected[1]);
}

// More pieces than the staging buffers of a queue hold at first.
TEST(DeviceSums, OfManyRegions) {
  const auto world = CreateDeviceWorld();
  const auto memory = world->worker().Allocate(ShareKind::kFileDescriptor, 4096);
  std::vector<std::byte> bytes(4096);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(7 * i + 1);
  memory->Write(0, bytes);
  const auto mapping = world->device().Map(memory->Share());
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  std::vector<DeviceRegion> regions;
  for (int i = 0; i < 50'000; ++i) regions.push_back({(*mapping)->data() + 16 * (i % 200), 32});
  std::vector<uint64_t> sums(regions.size());
  const auto queue = *world->device().CreateQueue(false);
  ASSERT_TRUE(queue->Sum(regions, absl::MakeSpan(sums)).ok());
  ASSERT_TRUE(queue->Finish().ok());
  for (size_t i = 0; i < sums.size(); i += 97) {
    EXPECT_EQ(sums[i], SumOf(absl::MakeConstSpan(bytes).subspan(16 * (i % 200), 32))) << i;
  }
}

}  // namespace
}  // namespace fq
