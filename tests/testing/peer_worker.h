// The worker's side of a peer link in this process: a window of host memory and sockets in NCCL's
// place. For tests; one thread.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/codec/word_sum.h"
#include "tests/testing/guarded_memory.h"
#include "tests/testing/running_node.h"
#include "tests/testing/socket_comm.h"

namespace fq {

class PeerWindow {
 public:
  explicit PeerWindow(uint64_t bytes) : fd_(CreateMemfd(bytes)), memory_(fd_, bytes) {}
  ~PeerWindow() { close(fd_); }
  PeerWindow(const PeerWindow&) = delete;
  PeerWindow& operator=(const PeerWindow&) = delete;

  std::byte* host(uint64_t offset = 0) const { return memory_.host() + offset; }
  PeerRegion At(uint64_t offset, uint64_t bytes) const {
    return {memory_.device() + offset, bytes};
  }
  std::string Bytes(uint64_t offset, uint64_t bytes) const {
    return {reinterpret_cast<const char*>(host(offset)), bytes};
  }
  uint64_t Sum(uint64_t offset, uint64_t bytes) const {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < bytes / 8; ++i) {
      uint64_t word;
      std::memcpy(&word, host(offset + 8 * i), 8);
      sum += WordSumTerm(i, word);
    }
    return sum;
  }

 private:
  const int fd_;
  const GuardedMemory memory_;
};

// Both communicators' ends, and how much has gone through them.
class PeerWorker {
 public:
  PeerWorker(const PeerId& down, const PeerId& up)
      : down_(*ConnectSocketComm(down, PeerDirection::kReceive)),
        up_(*ConnectSocketComm(up, PeerDirection::kSend)) {}

  // Operation 0 of both.
  bool Greet(const PeerWindow& window) {
    return Receive({window.At(0, kPeerHelloBytes)}) && Send({window.At(0, kPeerHelloBytes)});
  }
  // The next operation, until it is done; false when it fails, or is not done in time.
  bool Receive(PeerRegions regions) {
    StartReceive(std::move(regions));
    return Await(*down_, received_);
  }
  bool Send(PeerRegions regions) {
    StartSend(std::move(regions));
    return AwaitSends();
  }
  // Only begun: nothing moves until it is awaited.
  void StartReceive(PeerRegions regions) { Start(*down_, std::move(regions), received_); }
  void StartSend(PeerRegions regions) { Start(*up_, std::move(regions), sent_); }
  bool AwaitSends() { return Await(*up_, sent_); }
  void Leave() {
    down_.reset();
    up_.reset();
  }

 private:
  void Start(PeerComm& comm, PeerRegions regions, uint64_t& count) {
    started_.push_back(std::make_unique<const PeerRegions>(std::move(regions)));
    EXPECT_TRUE(comm.Start({started_.back().get()}).ok());
    ++count;
  }
  static bool Await(PeerComm& comm, uint64_t count) {
    bool failed = false;
    return Eventually([&] {
             const absl::StatusOr<uint64_t> done = comm.Completed();
             failed = !done.ok();
             return failed || *done == count;
           }) &&
           !failed;
  }

  std::unique_ptr<PeerComm> down_, up_;
  uint64_t received_ = 0, sent_ = 0;
  std::vector<std::unique_ptr<const PeerRegions>> started_;
};

}  // namespace fq
