#include "server/peers/nccl_comm.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

#include <cstring>
#include <deque>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/peers/nccl_library.h"

namespace fq {
namespace {

constexpr int kRanks = 2;

absl::Status CudaCheck(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(call, ": ", cudaGetErrorString(error)));
}

class NcclComm final : public PeerComm {
 public:
  NcclComm(std::shared_ptr<const NcclLibrary> nccl, int ordinal, int peer, PeerDirection direction)
      : nccl_(std::move(nccl)), ordinal_(ordinal), peer_(peer), direction_(direction) {}
  ~NcclComm() override { Abort(); }

  absl::Status Join(const PeerId& id, int max_ctas) {
    FQ_RETURN_IF_ERROR(Enter());
    int least = 0, most = 0;
    FQ_RETURN_IF_ERROR(CudaCheck(cudaDeviceGetStreamPriorityRange(&least, &most),
                                 "cudaDeviceGetStreamPriorityRange"));
    FQ_RETURN_IF_ERROR(
        CudaCheck(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, most),
                  "cudaStreamCreateWithPriority"));
    NcclConfig config;
    config.blocking = 0;
    config.max_ctas = max_ctas;
    NcclUniqueId unique;
    static_assert(sizeof(unique.internal) == std::tuple_size_v<PeerId>);
    std::memcpy(unique.internal, id.data(), id.size());
    return nccl_->Check(
        nccl_->CommInitRankConfig(&comm_, kRanks, unique, kRanks - 1 - peer_, &config),
        "ncclCommInitRankConfig");
  }

  absl::StatusOr<bool> Ready() override {
    int state = kNcclSuccess;
    FQ_RETURN_IF_ERROR(
        nccl_->Check(nccl_->CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
    if (state == kNcclInProgress) return false;
    FQ_RETURN_IF_ERROR(nccl_->Check(state, "NCCL"));
    if (launching_ > 0) FQ_RETURN_IF_ERROR(MarkEnd());
    return true;
  }

  // What NCCL has not queued when it returns it queues from a thread of its own: only when it has,
  // and is in no progress any more, the event goes behind it.
  absl::Status Start(absl::Span<const PeerRegions* const> operations) override {
    FQ_RETURN_IF_ERROR(Enter());
    FQ_RETURN_IF_ERROR(nccl_->Check(nccl_->GroupStart(), "ncclGroupStart"));
    absl::Status status;
    for (const PeerRegions* regions : operations) {
      for (const PeerRegion& region : *regions) status.Update(Queue(region));
    }
    status.Update(nccl_->Check(nccl_->GroupEnd(), "ncclGroupEnd"));
    launching_ = operations.size();
    return status.ok() ? Ready().status() : status;
  }

  absl::StatusOr<uint64_t> Completed() override {
    FQ_RETURN_IF_ERROR(Enter());
    FQ_RETURN_IF_ERROR(Ready().status());
    while (!marks_.empty()) {
      const cudaError_t state = cudaEventQuery(marks_.front().event);
      if (state == cudaErrorNotReady) break;
      FQ_RETURN_IF_ERROR(CudaCheck(state, "cudaEventQuery"));
      spare_.push_back(marks_.front().event);
      completed_ += marks_.front().operations;
      marks_.pop_front();
    }
    return completed_;
  }

  void Abort() override {
    cudaSetDevice(ordinal_);
    if (comm_ != nullptr) nccl_->CommAbort(std::exchange(comm_, nullptr));
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);  // its kernels have been told to leave
      cudaStreamDestroy(std::exchange(stream_, nullptr));
    }
    for (const Mark& mark : std::exchange(marks_, {})) cudaEventDestroy(mark.event);
    for (cudaEvent_t event : std::exchange(spare_, {})) cudaEventDestroy(event);
  }

 private:
  // An event behind operations that were started together.
  struct Mark {
    cudaEvent_t event;
    uint64_t operations;
  };

  absl::Status Enter() const { return CudaCheck(cudaSetDevice(ordinal_), "cudaSetDevice"); }

  absl::Status Queue(const PeerRegion& region) {
    if (direction_ == PeerDirection::kSend) {
      return nccl_->Check(nccl_->Send(region.data, region.bytes, kNcclUint8, peer_, comm_, stream_),
                          "ncclSend");
    }
    return nccl_->Check(nccl_->Recv(region.data, region.bytes, kNcclUint8, peer_, comm_, stream_),
                        "ncclRecv");
  }

  absl::Status MarkEnd() {
    FQ_RETURN_IF_ERROR(Enter());
    if (spare_.empty()) {
      cudaEvent_t made = nullptr;
      FQ_RETURN_IF_ERROR(CudaCheck(cudaEventCreateWithFlags(&made, cudaEventDisableTiming),
                                   "cudaEventCreateWithFlags"));
      spare_.push_back(made);
    }
    marks_.push_back({spare_.back(), std::exchange(launching_, 0)});
    spare_.pop_back();
    return CudaCheck(cudaEventRecord(marks_.back().event, stream_), "cudaEventRecord");
  }

  const std::shared_ptr<const NcclLibrary> nccl_;
  const int ordinal_, peer_;
  const PeerDirection direction_;
  NcclCommHandle comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  uint64_t launching_ = 0;  // operations that have no event yet
  std::deque<Mark> marks_;  // of those that are not done
  std::vector<cudaEvent_t> spare_;
  uint64_t completed_ = 0;
};

class NcclTransport final : public PeerTransport {
 public:
  NcclTransport(std::shared_ptr<const NcclLibrary> nccl, const NcclOptions& options)
      : nccl_(std::move(nccl)), options_(options) {}

  const std::string& version() const override { return nccl_->version; }

  absl::StatusOr<PeerId> MakeId() override {
    NcclUniqueId unique;
    FQ_RETURN_IF_ERROR(nccl_->Check(nccl_->GetUniqueId(&unique), "ncclGetUniqueId"));
    PeerId id;
    std::memcpy(id.data(), unique.internal, id.size());
    return id;
  }

  absl::StatusOr<std::unique_ptr<PeerComm>> Join(const PeerId& id,
                                                 PeerDirection direction) override {
    return JoinAs(0, id, direction);
  }

  absl::StatusOr<std::unique_ptr<PeerComm>> JoinOther(const PeerId& id,
                                                      PeerDirection direction) override {
    return JoinAs(1, id, direction);
  }

 private:
  absl::StatusOr<std::unique_ptr<PeerComm>> JoinAs(int rank, const PeerId& id,
                                                   PeerDirection direction) {
    auto comm = std::make_unique<NcclComm>(nccl_, options_.ordinal, kRanks - 1 - rank, direction);
    FQ_RETURN_IF_ERROR(comm->Join(id, options_.max_ctas));
    return comm;
  }

  const std::shared_ptr<const NcclLibrary> nccl_;
  const NcclOptions options_;
};

}  // namespace

void PrepareNcclEnvironment() {
  // When a node is made no other thread reads the environment.
  // NOLINTBEGIN(concurrency-mt-unsafe)
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  // NOLINTEND(concurrency-mt-unsafe)
}

absl::StatusOr<std::unique_ptr<PeerTransport>> OpenNccl(const NcclOptions& options) {
  absl::StatusOr<std::unique_ptr<const NcclLibrary>> library = NcclLibrary::Open(options.library);
  if (!library.ok()) {
    return absl::Status(library.status().code(),
                        absl::StrCat(options.library, ": ", library.status().message()));
  }
  return std::make_unique<NcclTransport>(*std::move(library), options);
}

}  // namespace fq
