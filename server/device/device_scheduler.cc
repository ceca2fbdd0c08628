#include "server/device/device_scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr size_t kLoads = 0, kStores = 1;

// Blocks that have to be uploaded first are decoded in runs of about so many bytes: the uploads of
// a run go beside the kernels of the one before. Neither is ever alone for longer than a run.
constexpr uint64_t kRunBytes = uint64_t{16} << 20;

size_t LaneIndex(DeviceWork work) { return work == DeviceWork::kEncode ? kStores : kLoads; }

}  // namespace

// A call in Run, until its last piece is done.
struct DeviceScheduler::Running {
  DeviceCall* call = nullptr;
  size_t pieces_left = 0;     // not done
  size_t pieces_waiting = 0;  // of those: not launched
  absl::Status status;
};

namespace {

// What a queue takes at once: the rows of every call, the blocks of every piece.
class LaunchedBlocks {
 public:
  void Add(DeviceCall& call, size_t begin, size_t end) {
    for (DeviceCall::Upload upload : call.uploads) {
      if (upload.block < begin || upload.block >= end) continue;
      upload.block += blocks_.size() - begin;
      uploads_.push_back(upload);
    }
    const int rows = static_cast<int>(rows_.size());
    rows_.push_back(call.rows);
    for (size_t i = begin; i < end; ++i) {
      blocks_.push_back(call.blocks[i]);
      blocks_.back().rows = rows;
    }
    broken_.resize(blocks_.size());
    for (const DeviceCall::Sample& sample : call.samples) {
      if (sample.block >= begin && sample.block < end) samples_.push_back(sample.part);
    }
  }

  absl::Status Queue(const DeviceCall& first, DeviceQueue& queue) {
    if (blocks_.empty()) return absl::OkStatus();
    if (first.work == DeviceWork::kEncode) {
      FQ_RETURN_IF_ERROR(queue.Encode(*first.codec, rows_, blocks_));
      return queue.Fetch(samples_);
    }
    const auto blocks = absl::MakeConstSpan(blocks_);
    const auto broken = absl::MakeSpan(broken_);
    size_t uploaded = 0;  // of uploads_
    for (size_t begin = 0; begin < blocks.size();) {
      FQ_ASSIGN_OR_RETURN(const size_t end, QueueUploads(uploaded, queue));
      FQ_RETURN_IF_ERROR(queue.Decode(*first.codec, rows_, blocks.subspan(begin, end - begin),
                                      broken.subspan(begin, end - begin)));
      begin = end;
    }
    return absl::OkStatus();
  }

  const std::vector<uint8_t>& broken() const { return broken_; }

 private:
  // Queues those of the next run, from number `at` on: the end of the run's blocks.
  absl::StatusOr<size_t> QueueUploads(size_t& at, DeviceQueue& queue) const {
    uint64_t bytes = 0;
    for (; at < uploads_.size(); ++at) {
      const DeviceCall::Upload& upload = uploads_[at];
      if (bytes >= kRunBytes && upload.block > uploads_[at - 1].block) return upload.block;
      FQ_RETURN_IF_ERROR(queue.CopyToDevice(upload.device, upload.host));
      bytes += upload.host.size();
    }
    return blocks_.size();
  }

  std::vector<DeviceCall::Upload> uploads_;  // of blocks_, ascending
  std::vector<DeviceRows> rows_;
  std::vector<DeviceBlock> blocks_;
  std::vector<DeviceFetch> samples_;
  std::vector<uint8_t> broken_;
};

// What a call without blocks asks for.
absl::Status QueueReads(DeviceCall& call, DeviceQueue& queue) {
  if (!call.blocks.empty()) return absl::OkStatus();
  for (const DeviceCall::Upload& upload : call.uploads) {
    FQ_RETURN_IF_ERROR(queue.CopyToDevice(upload.device, upload.host));
  }
  for (const DeviceCall::Download& download : call.downloads) {
    FQ_RETURN_IF_ERROR(queue.CopyToHost(download.host, download.device));
  }
  return queue.Sum(call.regions, absl::MakeSpan(call.sums));
}

}  // namespace

// A batch on its queue.
struct DeviceScheduler::Launched {
  Launched(Batch taken, std::unique_ptr<DeviceQueue> own)
      : batch(std::move(taken)), queue(std::move(own)) {}

  // Queues what is still wanted of it.
  void Queue() {
    for (const Piece& piece : batch) {
      DeviceCall& call = *piece.call->call;
      statuses.push_back(call.still_wanted());
      if (!statuses.back().ok()) continue;
      ++wanted;
      queued.Update(QueueReads(call, *queue));
      blocks.Add(call, piece.begin, piece.end);
    }
    if (queued.ok()) queued = blocks.Queue(*batch.front().call->call, *queue);
  }

  // Waits for it, and hands the flags to their calls.
  void Finish() {
    if (wanted == 0) return;
    queued.Update(queue->Finish());  // also after an error: what was queued still runs
    auto from = blocks.broken().begin();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!statuses[i].ok()) continue;
      const auto count = static_cast<std::ptrdiff_t>(batch[i].end - batch[i].begin);
      std::copy_n(
          from, count,
          batch[i].call->call->broken.begin() + static_cast<std::ptrdiff_t>(batch[i].begin));
      from += count;
    }
  }

  const Batch batch;
  std::unique_ptr<DeviceQueue> queue;
  std::vector<absl::Status> statuses;  // [batch], whether it is wanted
  size_t wanted = 0;
  LaunchedBlocks blocks;
  absl::Status queued;
};

absl::StatusOr<std::unique_ptr<DeviceScheduler>> DeviceScheduler::Create(Device* device,
                                                                         const Limits& limits) {
  std::unique_ptr<DeviceScheduler> scheduler(new DeviceScheduler(limits));
  absl::MutexLock lock(&scheduler->mutex_);
  for (size_t lane : {kLoads, kStores}) {
    for (int i = 0; i < limits.queues; ++i) {
      FQ_ASSIGN_OR_RETURN(auto queue, device->CreateQueue(/*urgent=*/lane == kLoads));
      scheduler->lanes_[lane].idle.push_back(std::move(queue));
    }
  }
  return scheduler;
}

absl::Status DeviceScheduler::Run(DeviceCall& call) {
  call.broken.assign(call.blocks.size(), 0);
  call.sums.assign(call.regions.size(), 0);
  Running running;
  running.call = &call;
  LaunchedBatches launched;
  const auto most = static_cast<size_t>(limits_.batches_of_a_call);
  absl::MutexLock lock(&mutex_);
  Lane& lane = lanes_[LaneIndex(call.work)];
  Enqueue(lane, running);
  while (running.pieces_left > 0 || !launched.empty()) {
    const bool launches = launched.empty() ||  // others' too: they may be what ours wait for
                          (running.pieces_waiting > 0 && launched.size() < most);
    if (launches && !lane.idle.empty() && !lane.turns.empty()) {
      LaunchNext(lane, launched);
    } else if (!launched.empty()) {
      FinishOldest(lane, launched);
    } else {
      lane.changed.Wait(&mutex_);
    }
  }
  return running.status;
}

size_t DeviceScheduler::BlocksPerPiece(const DeviceCall& call) const {
  if (call.codec == nullptr) return 1;
  const auto pages = static_cast<size_t>(call.codec->shape().pages());
  return std::max<size_t>(1, limits_.batch_pages / pages);
}

void DeviceScheduler::Enqueue(Lane& lane, Running& running) {
  const DeviceCall& call = *running.call;
  const size_t step = BlocksPerPiece(call);
  std::deque<Piece>& waiting = lane.waiting[call.session];
  if (waiting.empty()) lane.turns.push_back(call.session);
  size_t begin = 0;
  do {  // a call without blocks is one piece
    const size_t end = std::min(begin + step, call.blocks.size());
    waiting.push_back({&running, begin, end});
    ++running.pieces_left;
    ++running.pieces_waiting;
    begin = end;
  } while (begin < call.blocks.size());
}

// Pieces of one codec and one kind of work, one of each session in turn, while they fit.
DeviceScheduler::Batch DeviceScheduler::TakeBatch(Lane& lane) {
  Batch batch;
  uint64_t pages = 0;
  for (size_t refused = 0; refused < lane.turns.size();) {
    const void* session = lane.turns.front();
    std::deque<Piece>& waiting = lane.waiting[session];
    const Piece piece = waiting.front();
    const DeviceCall& call = *piece.call->call;
    const uint64_t more =
        call.codec == nullptr
            ? 0
            : (piece.end - piece.begin) * static_cast<uint64_t>(call.codec->shape().pages());
    const DeviceCall& first = batch.empty() ? call : *batch.front().call->call;
    const bool fits = call.codec == first.codec && call.work == first.work &&
                      (batch.empty() || pages + more <= limits_.batch_pages);
    lane.turns.pop_front();
    if (fits) {
      pages += more;
      batch.push_back(piece);
      --piece.call->pieces_waiting;
      waiting.pop_front();
      refused = 0;
    } else {
      ++refused;
    }
    if (waiting.empty()) {
      lane.waiting.erase(session);
    } else {
      lane.turns.push_back(session);
    }
  }
  return batch;
}

// Takes the next batch, whosever it is, to an idle queue; without the mutex meanwhile.
void DeviceScheduler::LaunchNext(Lane& lane, LaunchedBatches& launched) {
  launched.push_back(std::make_unique<Launched>(TakeBatch(lane), std::move(lane.idle.back())));
  lane.idle.pop_back();
  mutex_.Unlock();
  launched.back()->Queue();
  mutex_.Lock();
}

// Waits, without the mutex, for a batch that this thread has launched.
void DeviceScheduler::FinishOldest(Lane& lane, LaunchedBatches& launched) {
  const std::unique_ptr<Launched> oldest = std::move(launched.front());
  launched.pop_front();
  mutex_.Unlock();
  oldest->Finish();
  mutex_.Lock();
  lane.idle.push_back(std::move(oldest->queue));
  if (oldest->wanted > 0) ++stats_.launches;
  stats_.calls += oldest->wanted;
  for (size_t i = 0; i < oldest->batch.size(); ++i) {
    Running& call = *oldest->batch[i].call;
    call.status.Update(oldest->statuses[i].ok() ? oldest->queued : oldest->statuses[i]);
    --call.pieces_left;
  }
  lane.changed.SignalAll();
}

DeviceSchedulerStats DeviceScheduler::Stats() const {
  absl::MutexLock lock(&mutex_);
  DeviceSchedulerStats stats = stats_;
  for (const Lane& lane : lanes_) {
    for (const auto& [session, pieces] : lane.waiting) stats.waiting += pieces.size();
  }
  return stats;
}

}  // namespace fq
