#include "server/segments.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace fq {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

OwnedFd MemoryFile(uint64_t bytes, int seals) {
  OwnedFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

void ExpectRefused(const absl::Status& status, absl::StatusCode code, const std::string& part) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_NE(status.message().find(part), absl::string_view::npos) << status;
}

class SegmentTableTest : public testing::Test {
 protected:
  void ExpectInvalid(const OwnedFd& fd, uint64_t bytes, const std::string& part) {
    ExpectRefused(table_.Register(fd, bytes).status(), absl::StatusCode::kInvalidArgument, part);
    EXPECT_EQ(table_.size(), 0u);
  }
  SegmentTable table_{SegmentLimits{2, 1 << 20}};
};

TEST_F(SegmentTableTest, SealedMemfd_IsMappedBothWays) {
  const OwnedFd fd = MemoryFile(8192, kSeals);
  const auto id = table_.Register(fd, 8192);
  ASSERT_TRUE(id.ok()) << id.status();
  const auto segment = table_.Find(*id);
  ASSERT_NE(segment, nullptr);
  ASSERT_EQ(segment->memory().size(), 8192u);
  segment->memory()[8191] = std::byte{7};
  char seen = 0;
  EXPECT_EQ(pread(fd.get(), &seen, 1, 8191), 1);
  EXPECT_EQ(seen, 7);
}

TEST_F(SegmentTableTest, BadDescriptors_AreRefusedWithTheReason) {
  ExpectInvalid(MemoryFile(4096, F_SEAL_GROW), 4096, "F_SEAL_SHRINK");
  ExpectInvalid(MemoryFile(4096, F_SEAL_SHRINK), 4096, "F_SEAL_GROW");
  ExpectInvalid(MemoryFile(4096, kSeals | F_SEAL_WRITE), 4096, "F_SEAL_WRITE");
  ExpectInvalid(MemoryFile(4096, kSeals), 4095, "4095: the descriptor has 4096");
  ExpectInvalid(MemoryFile(4096, kSeals), 8192, "8192: the descriptor has 4096");
  ExpectInvalid(MemoryFile(0, kSeals), 0, "0: the descriptor has 0");
  ExpectInvalid(OwnedFd(open("/dev/zero", O_RDWR | O_CLOEXEC)), 4096, "not a memfd");
  ExpectInvalid(OwnedFd(open("/", O_RDONLY | O_CLOEXEC)), 4096, "not a memfd");
}

TEST_F(SegmentTableTest, Limits_AreNamedWithBothValues) {
  ExpectRefused(table_.Register(MemoryFile((1 << 20) + 1, kSeals), (1 << 20) + 1).status(),
                absl::StatusCode::kResourceExhausted, "1048577, at most 1048576");
  const OwnedFd fd = MemoryFile(1 << 20, kSeals);
  EXPECT_EQ(*table_.Register(fd, 1 << 20), 1u);
  EXPECT_EQ(*table_.Register(fd, 1 << 20), 2u);
  ExpectRefused(table_.Register(fd, 1 << 20).status(), absl::StatusCode::kResourceExhausted,
                "max-segments: the session has 2, at most 2");
}

TEST_F(SegmentTableTest, Unregistered_StaysMappedForWhoHoldsItAndItsIdIsNotUsedAgain) {
  const OwnedFd fd = MemoryFile(4096, kSeals);
  const uint32_t id = *table_.Register(fd, 4096);
  const auto held = table_.Find(id);
  EXPECT_TRUE(table_.Unregister(id).ok());
  EXPECT_EQ(table_.Find(id), nullptr);
  ExpectRefused(table_.Unregister(id), absl::StatusCode::kNotFound, "1");
  held->memory()[0] = std::byte{1};  // does not fault
  EXPECT_EQ(*table_.Register(fd, 4096), id + 1);
}

TEST_F(SegmentTableTest, Closed_UnmapsAllAndTakesNoMore) {
  const OwnedFd fd = MemoryFile(4096, kSeals);
  ASSERT_TRUE(table_.Register(fd, 4096).ok());
  table_.Close();
  EXPECT_EQ(table_.size(), 0u);
  ExpectRefused(table_.Register(fd, 4096).status(), absl::StatusCode::kUnauthenticated, "ended");
}

}  // namespace
}  // namespace fq
