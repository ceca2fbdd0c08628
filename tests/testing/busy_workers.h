// Keeps every worker of a pool busy until released. For tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "absl/synchronization/notification.h"
#include "server/workers.h"

namespace fq {

class BusyWorkers {
 public:
  explicit BusyWorkers(WorkerPool& pool) {
    for (uint32_t i = 0; i < pool.workers(); ++i) {
      absl::Notification started;
      EXPECT_TRUE(pool.Submit([release = release_, &started] {
                        started.Notify();
                        release->WaitForNotification();
                      })
                      .ok());
      started.WaitForNotification();
    }
  }
  ~BusyWorkers() { Release(); }

  void Release() {
    if (!release_->HasBeenNotified()) release_->Notify();
  }

 private:
  // The workers' too: they may still look at it when this is gone.
  const std::shared_ptr<absl::Notification> release_ = std::make_shared<absl::Notification>();
};

}  // namespace fq
