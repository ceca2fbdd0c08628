#include "client/cpp/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

namespace fq::client {
namespace {

TEST(Segment, Create_SealsAndRounds) {
  const auto segment = *Segment::Create(5000);
  EXPECT_EQ(segment->memory().size(), 8192u);
  const int fd = segment->current().fd->get();
  EXPECT_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
  struct stat info {};
  ASSERT_EQ(fstat(fd, &info), 0);
  EXPECT_EQ(info.st_size, 8192);
}

TEST(Segment, Create_NothingOrTooMuch_IsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Segment::Create(0).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(Segment::Create(uint64_t{1} << 60).status()));
}

TEST(Segment, Replace_LateWriterReachesNobody) {
  const auto segment = *Segment::Create(4096);
  const auto before = segment->current();
  void* node = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, before.fd->get(), 0);
  ASSERT_NE(node, MAP_FAILED);
  std::byte* const address = segment->memory().data();
  std::memset(address, 1, 4096);
  ASSERT_TRUE(segment->Replace(before.generation).ok());
  EXPECT_EQ(segment->memory().data(), address);
  EXPECT_EQ(address[0], std::byte{0});
  std::memset(address, 3, 4096);
  EXPECT_EQ(static_cast<char*>(node)[0], 1);  // what a late store would read
  std::memset(node, 2, 4096);                 // what a late load would write
  EXPECT_EQ(address[0], std::byte{3});
  munmap(node, 4096);
}

TEST(Segment, Replace_OfAnOldGeneration_HasNoEffect) {
  const auto segment = *Segment::Create(4096);
  ASSERT_TRUE(segment->Replace(0).ok());
  segment->memory()[0] = std::byte{9};
  ASSERT_TRUE(segment->Replace(0).ok());
  EXPECT_EQ(segment->memory()[0], std::byte{9});
  EXPECT_EQ(segment->generation(), 1u);
}

}  // namespace
}  // namespace fq::client
