#include "server/socket_file.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <fstream>

#include "server/segments.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

OwnedFd Bind(const std::string& path, int type) {
  OwnedFd fd(socket(AF_UNIX, type, 0));
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  std::memcpy(at.sun_path, path.data(), path.size());
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  EXPECT_EQ(listen(fd.get(), 1), 0);
  return fd;
}

bool Exists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0;
}

class SocketFileTest : public testing::TestWithParam<int> {
 protected:
  TempFolder folder_;
  std::string path_ = folder_.path() + "/a/b/x.sock";
};

TEST_P(SocketFileTest, MissingFolder_IsMadeForTheOwnerOnly) {
  ASSERT_TRUE(PrepareSocketPath(path_).ok());
  struct stat info {};
  ASSERT_EQ(stat((folder_.path() + "/a/b").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_P(SocketFileTest, StaleSocket_IsRemoved) {
  ASSERT_TRUE(PrepareSocketPath(path_).ok());
  { const OwnedFd gone = Bind(path_, GetParam()); }
  ASSERT_TRUE(Exists(path_));
  EXPECT_TRUE(PrepareSocketPath(path_).ok());
  EXPECT_FALSE(Exists(path_));
}

TEST_P(SocketFileTest, SomebodyListens_IsRefusedAndLeftAlone) {
  ASSERT_TRUE(PrepareSocketPath(path_).ok());
  const OwnedFd listener = Bind(path_, GetParam());
  const absl::Status status = PrepareSocketPath(path_);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(status.message().find(path_), absl::string_view::npos);
  EXPECT_TRUE(Exists(path_));
}

TEST_P(SocketFileTest, OrdinaryFile_IsRefusedAndLeftAlone) {
  ASSERT_TRUE(PrepareSocketPath(path_).ok());
  std::ofstream(path_) << "precious";
  EXPECT_EQ(PrepareSocketPath(path_).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(Exists(path_));
}

TEST_P(SocketFileTest, FolderThatCannotBeMade_IsUnavailable) {
  const absl::Status status = PrepareSocketPath("/proc/nowhere/x.sock");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("/proc/nowhere"), absl::string_view::npos);
}

TEST_P(SocketFileTest, Listen_HasItsModeBeforeAnybodyCanConnect) {
  ASSERT_TRUE(PrepareSocketPath(path_).ok());
  const auto listener = ListenUnix(path_, GetParam(), 0640);
  ASSERT_TRUE(listener.ok()) << listener.status();
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(PrepareSocketPath(path_).code(), absl::StatusCode::kAlreadyExists);
  const auto second = ListenUnix(path_, GetParam(), 0640);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(path_), absl::string_view::npos);
}

TEST_P(SocketFileTest, PathTooLong_IsInvalidWithBothLengths) {
  const auto listener = ListenUnix("/" + std::string(120, 'x'), GetParam(), 0600);
  EXPECT_EQ(listener.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(listener.status().message().find("has 121 bytes: at most 107"),
            absl::string_view::npos);
}

INSTANTIATE_TEST_SUITE_P(Types, SocketFileTest, testing::Values(SOCK_STREAM, SOCK_SEQPACKET));

}  // namespace
}  // namespace fq
