// Against a socket that answers as told; a real node's: session_test.cc.
#include "client/cpp/call_socket.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <thread>

#include "absl/time/clock.h"
#include "client/cpp/retry_after.h"
#include "tests/testing/eventually.h"

namespace fq::client {
namespace {

std::string Head(uint32_t first, uint32_t second) {
  std::string head(8, '\0');
  std::memcpy(head.data(), &first, 4);
  std::memcpy(head.data() + 4, &second, 4);
  return head;
}

class CallSocketTest : public testing::Test {
 protected:
  static std::string MakeFolder() {
    std::string folder = "/tmp/fqc-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    return folder;
  }
  CallSocketTest() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
  }
  ~CallSocketTest() override {
    calls_.reset();  // hangs up on the thread
    shutdown(listener_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    close(listener_);
    std::filesystem::remove_all(folder_);
  }
  std::string path() const { return folder_ + "/call"; }

  // Accepts connections one after the other, greets, and answers each packet; an empty answer hangs
  // up.
  void Serve(const std::string& greeting, std::function<std::string(const std::string&)> answer) {
    thread_ = std::thread([this, greeting, answer = std::move(answer)] {
      for (int fd; (fd = accept(listener_, nullptr, nullptr)) >= 0; close(fd)) {
        ++connections_;
        if (!greeting.empty()) send(fd, greeting.data(), greeting.size(), MSG_NOSIGNAL);
        std::string packet(1 << 17, '\0');
        for (ssize_t bytes; (bytes = recv(fd, packet.data(), packet.size(), 0)) > 0;) {
          const std::string reply = answer(packet.substr(0, static_cast<size_t>(bytes)));
          if (reply.empty()) break;
          send(fd, reply.data(), reply.size(), MSG_NOSIGNAL);
        }
      }
    });
  }

  static absl::Time Soon() { return absl::Now() + absl::FromChrono(kPatience); }

  const std::string folder_ = MakeFolder();
  int listener_ = -1;
  std::atomic<int> connections_{0};
  std::thread thread_;
  std::optional<CallSocket> calls_{path()};
};

TEST_F(CallSocketTest, Calls_KeepTheirConnection) {
  Serve(Head(1, 1000),
        [](const std::string& packet) { return Head(0, 0) + "re:" + packet.substr(16); });
  for (const char* text : {"one", "two"}) {
    const auto reply = calls_->Call(CallKind::kLookup, text, Soon());
    ASSERT_TRUE(reply.has_value() && reply->ok());
    EXPECT_EQ(**reply, std::string("re:") + text);
  }
  EXPECT_EQ(connections_, 1);
}

TEST_F(CallSocketTest, Request_HasItsKindAndTheTimeThatIsLeft) {
  Serve(Head(1, 1000), [](const std::string& packet) { return Head(0, 0) + packet.substr(0, 16); });
  const auto head = calls_->Call(CallKind::kLoad, "", Soon());
  ASSERT_TRUE(head.has_value() && head->ok());
  EXPECT_EQ((*head)->substr(0, 8), Head(3, 0));
  uint64_t timeout_us = 0;
  std::memcpy(&timeout_us, (*head)->data() + 8, 8);
  EXPECT_GT(timeout_us, 0u);
  EXPECT_LE(std::chrono::microseconds(timeout_us), kPatience);
}

TEST_F(CallSocketTest, Errors_AreTheNodes) {
  Serve(Head(1, 1000), [](const std::string&) { return Head(8, 20) + "queue-depth"; });
  const auto reply = calls_->Call(CallKind::kStore, "", Soon());
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(reply->status().message(), "queue-depth");
  EXPECT_EQ(RetryAfter(reply->status()), absl::Milliseconds(20));
}

TEST_F(CallSocketTest, WhatItDoesNotTake_IsForGrpc) {
  EXPECT_FALSE(CallSocket(folder_ + "/none").Call(CallKind::kLookup, "", Soon()).has_value());
  EXPECT_FALSE(CallSocket(std::string(200, 'x')).Call(CallKind::kLookup, "", Soon()).has_value());
  Serve(Head(1, 100), [](const std::string&) { return Head(0, 0); });
  EXPECT_FALSE(calls_->Call(CallKind::kLookup, std::string(85, 'x'), Soon()).has_value());
  EXPECT_TRUE(calls_->Call(CallKind::kLookup, std::string(84, 'x'), Soon()).has_value());
}

TEST_F(CallSocketTest, AnotherVersion_IsForGrpc) {
  Serve(Head(2, 1000), [](const std::string&) { return Head(0, 0); });
  EXPECT_FALSE(calls_->Call(CallKind::kLookup, "", Soon()).has_value());
}

TEST_F(CallSocketTest, NoGreetingOrNoAnswer_EndsWithTheDeadline) {
  Serve("", [](const std::string&) { return Head(0, 0); });
  const absl::Time begin = absl::Now();
  const auto reply = calls_->Call(CallKind::kLookup, "", begin + absl::Milliseconds(50));
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(50));
}

TEST_F(CallSocketTest, HungUpUnderACall_IsUnavailable) {
  Serve(Head(1, 1000), [](const std::string&) { return std::string(); });
  const auto reply = calls_->Call(CallKind::kLookup, "", Soon());
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace fq::client
