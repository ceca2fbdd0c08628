// The scheduler on the stand-in for a GPU: what becomes one launch, whose turn it is, what is never
// launched.
#include "server/device/device_scheduler.h"

#include <gtest/gtest.h>

#include <thread>

namespace fq {
namespace {

// A queue that records what it is given and finishes only when told to.
class RecordingQueue : public DeviceQueue {
 public:
  struct Log {
    absl::Mutex mutex;
    std::vector<std::vector<std::string>> launches;  // keys of the blocks, as text; "upload"
    bool open = true;
    int waiting = 0;
    absl::Status finish;
  };
  explicit RecordingQueue(Log* log) : log_(log) {}

  absl::Status Encode(const DeviceCodec&, absl::Span<const DeviceRows>,
                      absl::Span<const DeviceBlock> blocks) override {
    return Record(blocks);
  }
  absl::Status Decode(const DeviceCodec&, absl::Span<const DeviceRows> rows,
                      absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) override {
    for (size_t i = 0; i < blocks.size(); ++i) {
      EXPECT_LT(static_cast<size_t>(blocks[i].rows), rows.size());
      broken[i] = blocks[i].id.key[1];
    }
    return Record(blocks);
  }
  // The sum of a region is its length.
  absl::Status Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) override {
    for (size_t i = 0; i < regions.size(); ++i) sums[i] = regions[i].bytes;
    return absl::OkStatus();
  }
  absl::Status CopyToHost(absl::Span<std::byte>, const std::byte*) override {
    return absl::OkStatus();
  }
  absl::Status CopyToDevice(std::byte*, absl::Span<const std::byte>) override {
    absl::MutexLock lock(&log_->mutex);
    log_->launches.push_back({"upload"});
    return absl::OkStatus();
  }
  absl::Status Fetch(absl::Span<const DeviceFetch>) override { return absl::OkStatus(); }
  absl::Status Finish() override {
    absl::MutexLock lock(&log_->mutex);
    ++log_->waiting;
    log_->mutex.Await(absl::Condition(&log_->open));
    --log_->waiting;
    return log_->finish;
  }

 private:
  absl::Status Record(absl::Span<const DeviceBlock> blocks) {
    absl::MutexLock lock(&log_->mutex);
    log_->launches.emplace_back();
    for (const DeviceBlock& block : blocks) {
      log_->launches.back().push_back(std::string(1, static_cast<char>(block.id.key[0])));
    }
    return absl::OkStatus();
  }
  Log* const log_;
};

class FourPagesCodec : public DeviceCodec {
 public:
  FourPagesCodec() {
    shape_.layer_end = 2;
    shape_.head_end = 2;
  }
  const SlabShape& shape() const override { return shape_; }

 private:
  SlabShape shape_;
};

// Only queues are asked for.
class RecordingDevice : public Device {
 public:
  const DeviceInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool urgent) override {
    return std::make_unique<RecordingQueue>(urgent ? &loads : &stores);
  }
  absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t) override {
    return absl::UnimplementedError("");
  }
  std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t) override { return nullptr; }
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(const SharedAllocation&) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle&) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape&, std::shared_ptr<const CodecSet>) override {
    return absl::UnimplementedError("");
  }
  RecordingQueue::Log loads, stores;

 private:
  DeviceInfo info_;
};

class DeviceSchedulerTest : public testing::Test {
 protected:
  DeviceSchedulerTest() { UseQueues(1, 1); }
  void UseQueues(int queues, int batches_of_a_call) {
    DeviceScheduler::Limits limits;
    limits.queues = queues;
    limits.batches_of_a_call = batches_of_a_call;
    limits.batch_pages = 4 * 3;  // three blocks
    scheduler_ = *DeviceScheduler::Create(&device_, limits);
  }
  ~DeviceSchedulerTest() override {
    Open(device_.loads, true);
    Open(device_.stores, true);
    for (std::thread& thread : threads_) thread.join();
  }

  // A call of `session` with one block for each letter.
  DeviceCall Call(DeviceWork work, int session, const std::string& letters) {
    DeviceCall call;
    call.work = work;
    call.session = &sessions_[session];
    call.codec = &codec_;
    for (char letter : letters) {
      DeviceBlock block;
      block.id.key[0] = static_cast<uint8_t>(letter);
      call.blocks.push_back(block);
    }
    return call;
  }

  void Start(DeviceCall call) {
    threads_.emplace_back([this, call]() mutable { EXPECT_TRUE(scheduler_->Run(call).ok()); });
  }

  static void Open(RecordingQueue::Log& log, bool open) {
    absl::MutexLock lock(&log.mutex);
    log.open = open;
  }

  // Until that queue sits in Finish with its first launch.
  static void AwaitBusy(RecordingQueue::Log& log) {
    absl::MutexLock lock(&log.mutex);
    log.mutex.Await(absl::Condition(
        +[](RecordingQueue::Log* l) { return l->waiting == 1; }, &log));
  }

  static std::vector<std::vector<std::string>> Launches(RecordingQueue::Log& log) {
    absl::MutexLock lock(&log.mutex);
    return log.launches;
  }

  // Runs the calls while the queue is busy with another, and gives what was launched after that.
  std::vector<std::vector<std::string>> LaunchedTogether(std::vector<DeviceCall> calls) {
    Open(device_.loads, false);
    Start(Call(DeviceWork::kDecode, 3, "0"));
    AwaitBusy(device_.loads);
    for (DeviceCall& call : calls) {  // one after the other
      const uint64_t before = scheduler_->Stats().waiting;
      Start(std::move(call));
      while (scheduler_->Stats().waiting == before) std::this_thread::yield();
    }
    Open(device_.loads, true);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    auto launches = Launches(device_.loads);
    launches.erase(launches.begin());
    return launches;
  }

  using Letters = std::vector<std::vector<std::string>>;

  RecordingDevice device_;
  FourPagesCodec codec_, other_codec_;
  int sessions_[4] = {};
  std::unique_ptr<DeviceScheduler> scheduler_;
  std::vector<std::thread> threads_;
};

TEST_F(DeviceSchedulerTest, WaitingCalls_BecomeOneLaunch) {
  EXPECT_EQ(LaunchedTogether({Call(DeviceWork::kDecode, 0, "a"), Call(DeviceWork::kDecode, 1, "b"),
                              Call(DeviceWork::kDecode, 2, "c")}),
            (Letters{{"a", "b", "c"}}));
  EXPECT_EQ(scheduler_->Stats().launches, 2u);
  EXPECT_EQ(scheduler_->Stats().calls, 4u);
}

TEST_F(DeviceSchedulerTest, ALargeCall_IsCutAndOthersGoInBetween) {
  EXPECT_EQ(LaunchedTogether(
                {Call(DeviceWork::kDecode, 0, "abcdefg"), Call(DeviceWork::kDecode, 1, "x")}),
            (Letters{{"a", "b", "c"}, {"x"}, {"d", "e", "f"}, {"g"}}));
}

TEST_F(DeviceSchedulerTest, ALargeCall_HasTwoLaunchesUnderWayAndAQueueIsLeftForOthers) {
  UseQueues(3, 2);
  Open(device_.loads, false);
  Start(Call(DeviceWork::kDecode, 0, "abcdefgh"));
  AwaitBusy(device_.loads);
  EXPECT_EQ(Launches(device_.loads), (Letters{{"a", "b", "c"}, {"d", "e", "f"}}));
  Start(Call(DeviceWork::kDecode, 1, "x"));
  {
    absl::MutexLock lock(&device_.loads.mutex);
    device_.loads.mutex.Await(absl::Condition(
        +[](RecordingQueue::Log* log) { return log->waiting == 2; }, &device_.loads));
  }
  EXPECT_EQ(Launches(device_.loads).size(), 3u);
}

TEST_F(DeviceSchedulerTest, AnotherCodec_IsAnotherLaunch) {
  DeviceCall other = Call(DeviceWork::kDecode, 1, "x");
  other.codec = &other_codec_;
  EXPECT_EQ(LaunchedTogether(
                {Call(DeviceWork::kDecode, 0, "a"), other, Call(DeviceWork::kDecode, 2, "b")}),
            (Letters{{"a", "b"}, {"x"}}));
}

TEST_F(DeviceSchedulerTest, BusyStores_DoNotDelayLoads) {
  Open(device_.stores, false);
  Start(Call(DeviceWork::kEncode, 0, "s"));
  AwaitBusy(device_.stores);
  DeviceCall load = Call(DeviceWork::kDecode, 1, "l");
  EXPECT_TRUE(scheduler_->Run(load).ok());
}

TEST_F(DeviceSchedulerTest, BrokenFlags_ComeBackToTheirBlocks) {
  DeviceCall load = Call(DeviceWork::kDecode, 0, "abcdefg");
  load.blocks[1].id.key[1] = 1;
  load.blocks[6].id.key[1] = 2;
  ASSERT_TRUE(scheduler_->Run(load).ok());
  EXPECT_EQ(load.broken, (std::vector<uint8_t>{0, 1, 0, 0, 0, 0, 2}));
}

// The uploads of the next run are queued behind the kernels of the one before, which they may
// overtake; a block is never decoded before all its extents are queued.
TEST_F(DeviceSchedulerTest, Uploads_GoInRunsBeforeTheirBlocks) {
  constexpr size_t kTenMiB = size_t{10} << 20;
  DeviceCall load = Call(DeviceWork::kDecode, 0, "abcdef");  // two pieces: abc, def
  for (size_t block : {0, 0, 1, 1, 2, 4}) {
    load.uploads.push_back({block, nullptr, {static_cast<const std::byte*>(nullptr), kTenMiB}});
  }
  load.blocks[5].id.key[1] = 3;
  ASSERT_TRUE(scheduler_->Run(load).ok());
  EXPECT_EQ(Launches(device_.loads), (Letters{{"upload"},
                                              {"upload"},
                                              {"a"},
                                              {"upload"},
                                              {"upload"},
                                              {"b"},
                                              {"upload"},
                                              {"c"},
                                              {"upload"},
                                              {"d", "e", "f"}}));
  EXPECT_EQ(load.broken, (std::vector<uint8_t>{0, 0, 0, 0, 0, 3}));
}

// A call without blocks: everything it uploads, and its sums.
TEST_F(DeviceSchedulerTest, Reads_UploadAndSum) {
  DeviceCall read = Call(DeviceWork::kRead, 0, "");
  read.codec = nullptr;
  read.uploads.resize(2);
  read.regions = {{nullptr, 16}, {nullptr, 48}};
  EXPECT_TRUE(scheduler_->Run(read).ok());
  EXPECT_EQ(Launches(device_.loads),
            (std::vector<std::vector<std::string>>{{"upload"}, {"upload"}}));
  EXPECT_EQ(read.sums, (std::vector<uint64_t>{16, 48}));
}

TEST_F(DeviceSchedulerTest, GivenUpWhileWaiting_IsNeverLaunched) {
  DeviceCall unwanted = Call(DeviceWork::kDecode, 0, "abcd");
  unwanted.still_wanted = [] { return absl::CancelledError("given up"); };
  EXPECT_EQ(scheduler_->Run(unwanted).code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Launches(device_.loads).empty());
}

TEST_F(DeviceSchedulerTest, AFailedLaunch_IsTheResultOfItsCalls) {
  {
    absl::MutexLock lock(&device_.stores.mutex);
    device_.stores.finish = absl::InternalError("launch failed");
  }
  DeviceCall store = Call(DeviceWork::kEncode, 0, "abcdefg");
  EXPECT_EQ(scheduler_->Run(store).code(), absl::StatusCode::kInternal);
  DeviceCall load = Call(DeviceWork::kDecode, 0, "a");
  EXPECT_TRUE(scheduler_->Run(load).ok());
}

}  // namespace
}  // namespace fq
