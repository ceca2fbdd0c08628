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
  size_t pieces_left = 0;
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
  }

  absl::Status Queue(const DeviceCall& first, DeviceQueue& queue) {
    if (blocks_.empty()) return absl::OkStatus();
    if (first.work == DeviceWork::kEncode) return queue.Encode(*first.codec, rows_, blocks_);
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
  std::vector<uint8_t> broken_;
};

absl::Status QueueDownloads(const DeviceCall& call, DeviceQueue& queue) {
  for (const DeviceCall::Download& download : call.downloads) {
    FQ_RETURN_IF_ERROR(queue.CopyToHost(download.host, download.device));
  }
  return absl::OkStatus();
}

}  // namespace

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
  Running running;
  running.call = &call;
  absl::MutexLock lock(&mutex_);
  Lane& lane = lanes_[LaneIndex(call.work)];
  Enqueue(lane, running);
  while (running.pieces_left > 0) {
    if (!lane.idle.empty() && !lane.turns.empty()) {
      ServeOnce(lane);
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
void DeviceScheduler::ServeOnce(Lane& lane) {
  const Batch batch = TakeBatch(lane);
  std::unique_ptr<DeviceQueue> queue = std::move(lane.idle.back());
  lane.idle.pop_back();
  mutex_.Unlock();
  std::vector<absl::Status> statuses;
  Batch wanted;
  for (const Piece& piece : batch) {
    statuses.push_back(piece.call->call->still_wanted());
    if (statuses.back().ok()) wanted.push_back(piece);
  }
  const absl::Status launched = wanted.empty() ? absl::OkStatus() : Launch(wanted, *queue);
  mutex_.Lock();
  lane.idle.push_back(std::move(queue));
  if (!wanted.empty()) ++stats_.launches;
  stats_.calls += wanted.size();
  for (size_t i = 0; i < batch.size(); ++i) {
    batch[i].call->status.Update(statuses[i].ok() ? launched : statuses[i]);
    --batch[i].call->pieces_left;
  }
  lane.changed.SignalAll();
}

absl::Status DeviceScheduler::Launch(const Batch& batch, DeviceQueue& queue) {
  LaunchedBlocks blocks;
  absl::Status status;
  for (const Piece& piece : batch) {
    DeviceCall& call = *piece.call->call;
    status.Update(QueueDownloads(call, queue));
    blocks.Add(call, piece.begin, piece.end);
  }
  if (status.ok()) status = blocks.Queue(*batch.front().call->call, queue);
  status.Update(queue.Finish());  // also after an error: what was queued still runs
  size_t at = 0;
  for (const Piece& piece : batch) {
    const size_t count = piece.end - piece.begin;
    std::copy_n(blocks.broken().begin() + static_cast<std::ptrdiff_t>(at), count,
                piece.call->call->broken.begin() + static_cast<std::ptrdiff_t>(piece.begin));
    at += count;
  }
  return status;
}

DeviceSchedulerStats DeviceScheduler::Stats() const {
  absl::MutexLock lock(&mutex_);
  return stats_;
}

}  // namespace fq
