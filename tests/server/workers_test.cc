#include "server/workers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "server/retry_after.h"
#include "tests/testing/busy_workers.h"

namespace fq {
namespace {

TEST(WorkerPool, QueueFull_IsRefusedWithRetryAfterAndBothNumbers) {
  std::atomic<int> ran{0};
  WorkerPool pool(2, 3);
  const BusyWorkers busy(pool);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(pool.Submit([&] { ++ran; }).ok());
  EXPECT_EQ(pool.queued(), 3u);
  const absl::Status refused = pool.Submit([&] { ++ran; });
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("queue-depth: 3"), absl::string_view::npos) << refused;
  EXPECT_TRUE(RetryAfterMs(refused).has_value());
}

// A job that has been admitted once is taken, whatever waits.
TEST(WorkerPool, Resume_IsTakenWhenTheQueueIsFull) {
  std::atomic<int> ran{0};
  {
    WorkerPool pool(1, 1);
    const BusyWorkers busy(pool);
    EXPECT_TRUE(pool.Submit([&] { ++ran; }).ok());
    EXPECT_FALSE(pool.Submit([] {}).ok());
    pool.Resume([&] { ++ran; });
    EXPECT_EQ(pool.queued(), 2u);
  }
  EXPECT_EQ(ran, 2);
}

TEST(WorkerPool, Destroyed_RunsWhatWasQueued) {
  std::atomic<int> ran{0};
  {
    WorkerPool pool(1, 100);
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(pool.Submit([&] { ++ran; }).ok());
  }
  EXPECT_EQ(ran, 50);
}

TEST(WorkerPool, Run_WithAFreeWorker_IsInTheCallingThreadAndCounts) {
  WorkerPool pool(1, 100);
  std::atomic<bool> ran{false};
  std::thread::id where;
  EXPECT_TRUE(pool.Run([&] {
                    where = std::this_thread::get_id();
                    EXPECT_TRUE(pool.Submit([&] { ran = true; }).ok());
                    std::this_thread::sleep_for(std::chrono::milliseconds(50));
                    EXPECT_FALSE(ran);  // the one worker that there may be is this one
                  })
                  .ok());
  EXPECT_EQ(where, std::this_thread::get_id());
  while (!ran) std::this_thread::yield();
}

TEST(WorkerPool, Run_AllBusy_WaitsForAWorker) {
  WorkerPool pool(2, 1);
  BusyWorkers busy(pool);
  std::thread::id where;
  std::thread caller([&] {
    EXPECT_TRUE(pool.Run([&] { where = std::this_thread::get_id(); }).ok());
    EXPECT_NE(where, std::thread::id());
    EXPECT_NE(where, std::this_thread::get_id());
  });
  while (pool.queued() == 0) std::this_thread::yield();
  EXPECT_EQ(pool.Run([] { FAIL(); }).code(), absl::StatusCode::kResourceExhausted);
  busy.Release();
  caller.join();
}

TEST(WorkerPool, ForEach_CallsEachIndexOnce) {
  WorkerPool pool(3, 100);
  std::vector<std::atomic<int>> calls(200);
  EXPECT_TRUE(pool.ForEach(calls.size(),
                           [&](size_t i) {
                             ++calls[i];
                             return absl::OkStatus();
                           })
                  .ok());
  for (const auto& count : calls) EXPECT_EQ(count, 1);
}

TEST(WorkerPool, ForEachWhileAllAreBusy_RunsOnTheCaller) {
  WorkerPool pool(2, 1);
  const BusyWorkers busy(pool);
  int calls = 0;
  EXPECT_TRUE(pool.ForEach(10,
                           [&](size_t) {
                             ++calls;
                             return absl::OkStatus();
                           })
                  .ok());
  EXPECT_EQ(calls, 10);
}

TEST(WorkerPool, ForEachFails_StopsAndReturnsTheError) {
  WorkerPool pool(1, 1);
  int calls = 0;
  const absl::Status status = pool.ForEach(10, [&](size_t i) {
    ++calls;
    return i == 2 ? absl::CancelledError("two") : absl::OkStatus();
  });
  EXPECT_EQ(status, absl::CancelledError("two"));
  EXPECT_EQ(calls, 3);
}

TEST(WorkerPool, ForEachInsideJobs_NeverDeadlocks) {
  WorkerPool pool(2, 100);
  std::atomic<int> calls{0};
  {
    WorkerPool outer(4, 100);
    for (int i = 0; i < 20; ++i) {
      EXPECT_TRUE(outer
                      .Submit([&] {
                        pool.ForEach(20,
                                     [&](size_t) {
                                       ++calls;
                                       return absl::OkStatus();
                                     })
                            .IgnoreError();
                      })
                      .ok());
    }
  }
  EXPECT_EQ(calls, 400);
}

}  // namespace
}  // namespace fq
