#include "server/connections/frame_filter.h"

#include <gtest/gtest.h>

#include <string>

namespace fq {
namespace {

constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kWindow = 8,
                  kContinuation = 9;
constexpr uint8_t kAck = 1, kEndStream = 1, kEndHeaders = 4;
const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr MonotonicTime kStart{std::chrono::hours(1)};

// What OpenRequests makes of frames is tested there.
OpenRequests& AnyRequests() {
  static RequestRoom room(uint64_t{1} << 40);
  static OpenRequests requests(&room);
  return requests;
}

std::string Frame(uint8_t type, uint8_t flags, size_t length) {
  std::string frame(9 + length, '\0');
  for (int i = 0; i < 3; ++i) frame[i] = static_cast<char>(length >> (16 - 8 * i));
  frame[3] = static_cast<char>(type);
  frame[4] = static_cast<char>(flags);
  return frame;
}

std::string Hello() { return kPreface + Frame(kSettings, 0, 6); }

std::string Times(size_t count, const std::string& frame) {
  std::string all;
  for (size_t i = 0; i < count; ++i) all += frame;
  return all;
}

absl::StatusOr<FrameVerdict> Check(FrameFilter& filter, const std::string& bytes,
                                   MonotonicTime now = kStart) {
  return filter.Check({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}, now);
}

// A filter that has let the introduction and the acknowledgement of the node's settings pass.
FrameFilter Introduced() {
  FrameFilter filter(&AnyRequests());
  EXPECT_TRUE(Check(filter, Hello()).ok());
  filter.OnGreeted();
  EXPECT_TRUE(Check(filter, Frame(kSettings, kAck, 0)).ok());
  return filter;
}

TEST(FrameFilter, WhatAClientSays_PassesWhole) {
  FrameFilter filter(&AnyRequests());
  EXPECT_FALSE(filter.introduced());
  EXPECT_EQ(Check(filter, Hello())->pass, Hello().size());
  EXPECT_TRUE(filter.introduced());
  EXPECT_FALSE(filter.has_asked());
  filter.OnGreeted();
  const std::string call = Frame(kSettings, kAck, 0) + Frame(kHeaders, kEndHeaders, 90) +
                           Frame(kData, 0, 16384) + Frame(kData, kEndStream, 7) +
                           Frame(kWindow, 0, 4) + Frame(kPing, 0, 8) + Frame(kReset, 0, 4);
  const auto verdict = Check(filter, call);
  ASSERT_TRUE(verdict.ok()) << verdict.status();
  EXPECT_EQ(verdict->pass, call.size());
  EXPECT_FALSE(verdict->too_fast);
  EXPECT_TRUE(filter.has_asked());
}

// Wherever the bytes are cut, the same of them pass.
TEST(FrameFilter, AnyCut_PassesTheSameBytes) {
  const std::string all = Hello() + Frame(kHeaders, kEndHeaders, 30) + Frame(kData, 0, 300) +
                          Frame(kPing, 0, 8) + Frame(kHeaders, 0, 3) +
                          Frame(kContinuation, kEndHeaders, 2);
  for (size_t cut = 1; cut <= 40; ++cut) {
    FrameFilter filter(&AnyRequests());
    std::string waiting;
    size_t passed = 0;
    for (size_t at = 0; at < all.size(); at += cut) {
      waiting += all.substr(at, cut);
      const auto verdict = Check(filter, waiting);
      ASSERT_TRUE(verdict.ok()) << verdict.status() << " at " << at << " of cut " << cut;
      EXPECT_LT(waiting.size() - verdict->pass, 9u);  // a frame's own header at most stays behind
      passed += verdict->pass;
      waiting.erase(0, verdict->pass);
    }
    EXPECT_EQ(passed, all.size());
  }
}

struct Fault {
  const char* name;
  std::string bytes;  // after a good introduction, or from the first byte
  bool introduced;
  absl::StatusCode code;
  const char* text;
};

TEST(FrameFilter, Faults_AreRefusedWithBothValues) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;
  const Fault faults[] = {
      {"http 1.1", "GET / HTTP/1.1\r\n\r\n", false, kInvalid, "preface"},
      {"late in the preface", kPreface.substr(0, 23) + "x", false, kInvalid, "preface"},
      {"no settings", kPreface + Frame(kPing, 0, 8), false, kInvalid, "type 6: must be SETTINGS"},
      {"ack first", kPreface + Frame(kSettings, kAck, 0), false, kInvalid, "must be SETTINGS"},
      {"ack of nothing", Hello() + Frame(kSettings, kAck, 0), false, kInvalid,
       "before they were sent"},
      {"requests before the ack", Hello() + Times(33, Frame(kHeaders, kEndHeaders, 9)), false,
       kExhausted, "33 requests before the settings were acknowledged: at most 32"},
      {"frame in a header block", Frame(kHeaders, 0, 9) + Frame(kData, 0, 9), true, kInvalid,
       "type 0 inside"},
      {"continuation of nothing", Frame(kContinuation, 0, 9), true, kInvalid, "type 9 outside"},
      {"long ping", Frame(kPing, 0, 16385), true, kExhausted, "16385 bytes: at most 16384"},
      {"header block", Frame(kHeaders, 0, 16384) + Times(2, Frame(kContinuation, 0, 16384)), true,
       kExhausted, "header block of 32786 bytes: at most 32768"},
      {"empty continuations", Frame(kHeaders, 0, 1) + Times(3641, Frame(kContinuation, 0, 0)), true,
       kExhausted, "header block of 32770 bytes: at most 32768"},
      {"pings", Times(301, Frame(kPing, 0, 8)), true, kExhausted, "at most 300 at once and 100"},
      {"settings", Times(301, Frame(kSettings, 0, 0)), true, kExhausted, "type 4"},
      {"acknowledgements", Times(301, Frame(kSettings, kAck, 0)), true, kExhausted, "type 4"},
      {"unknown", Times(301, Frame(99, 0, 0)), true, kExhausted, "type 99"},
  };
  for (const Fault& fault : faults) {
    FrameFilter filter = fault.introduced ? Introduced() : FrameFilter(&AnyRequests());
    const auto verdict = Check(filter, fault.bytes);
    EXPECT_EQ(verdict.status().code(), fault.code) << fault.name;
    EXPECT_NE(verdict.status().message().find(fault.text), absl::string_view::npos)
        << fault.name << ": " << verdict.status();
  }
}

TEST(FrameFilter, AtTheLimits_Passes) {
  for (const std::string& bytes :
       {Frame(kHeaders, 0, 16384) + Frame(kContinuation, kEndHeaders, 16384 - 18),
        Times(298, Frame(kPing, 0, 8)), Frame(kPing, 0, 16384),
        Times(1000, Frame(kHeaders, kEndHeaders, 9))}) {
    FrameFilter filter = Introduced();
    const auto verdict = Check(filter, bytes);
    ASSERT_TRUE(verdict.ok()) << verdict.status();
    EXPECT_EQ(verdict->pass, bytes.size());
  }
}

TEST(FrameFilter, ControlFrames_MayGoOnAtTheirPace) {
  FrameFilter filter = Introduced();
  MonotonicTime now = kStart;
  for (int second = 0; second < 60; ++second, now += std::chrono::seconds(1)) {
    ASSERT_TRUE(Check(filter, Times(100, Frame(kPing, 0, 8)), now).ok()) << second;
  }
}

TEST(FrameFilter, ResetsWindowUpdatesAndCrumbs_WaitAndLoseNothing) {
  struct Row {
    std::string frame;
    size_t burst, per_second;
  };
  for (const Row& row :
       {Row{Frame(kReset, 0, 4), 100, 100}, Row{Frame(kData, 0, 1), 1000, 1000},
        Row{Frame(kData, 0, 0), 1000, 1000}, Row{Frame(kWindow, 0, 4), 2000, 10'000}}) {
    FrameFilter filter = Introduced();
    std::string waiting = Times(row.burst + 2 * row.per_second, row.frame);
    auto verdict = Check(filter, waiting);
    ASSERT_TRUE(verdict.ok());
    EXPECT_TRUE(verdict->too_fast);
    EXPECT_EQ(verdict->pass, row.burst * row.frame.size());
    waiting.erase(0, verdict->pass);
    verdict = Check(filter, waiting, kStart + std::chrono::seconds(3));
    EXPECT_EQ(verdict->pass, std::min(row.burst, 2 * row.per_second) * row.frame.size());
  }
}

}  // namespace
}  // namespace fq
