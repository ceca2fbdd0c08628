#include "tests/testing/cuda_worker.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "kernels/base/check.h"
#include "tests/testing/worker_messages.h"

namespace fq {
namespace {

WorkerReply Ask(int socket, const WorkerRequest& request,
                absl::Span<const std::byte> payload = {}) {
  FQ_CHECK(SendAll(socket, &request, sizeof(request)));
  FQ_CHECK(SendAll(socket, payload.data(), payload.size()));
  WorkerReply reply;
  FQ_CHECK(ReceiveAll(socket, &reply, sizeof(reply)));
  return reply;
}

class CudaMemoryOfWorker final : public WorkerMemory {
 public:
  CudaMemoryOfWorker(int socket, ShareKind kind, uint64_t bytes) : socket_(socket) {
    WorkerRequest request;
    request.verb = WorkerVerb::kAllocate;
    request.kind = kind;
    request.bytes = bytes;
    const WorkerReply reply = Ask(socket, request);
    allocation_ = reply.allocation;
    shared_.kind = kind;
    shared_.handle = reply.handle;
    shared_.bytes = reply.bytes;
    if (kind == ShareKind::kFileDescriptor) shared_.fd = ReceiveDescriptor(socket);
  }
  // The worker may be dead by now.
  ~CudaMemoryOfWorker() override {
    if (shared_.fd >= 0) close(shared_.fd);
    const WorkerRequest request = About(WorkerVerb::kFree, 0, 0);
    WorkerReply reply;
    if (SendAll(socket_, &request, sizeof(request))) ReceiveAll(socket_, &reply, sizeof(reply));
  }

  SharedAllocation Share() const override { return shared_; }
  void Write(uint64_t offset, absl::Span<const std::byte> bytes) override {
    Ask(socket_, About(WorkerVerb::kWrite, offset, bytes.size()), bytes);
  }
  std::vector<std::byte> Read(uint64_t offset, uint64_t bytes) override {
    Ask(socket_, About(WorkerVerb::kRead, offset, bytes));
    std::vector<std::byte> found(bytes);
    FQ_CHECK(ReceiveAll(socket_, found.data(), bytes));
    return found;
  }
  WorkerRequest About(WorkerVerb verb, uint64_t offset, uint64_t bytes) const {
    WorkerRequest request;
    request.verb = verb;
    request.allocation = allocation_;
    request.offset = offset;
    request.bytes = bytes;
    return request;
  }

 private:
  const int socket_;
  uint64_t allocation_;
  SharedAllocation shared_;
};

WorkerRequest About(WorkerMemory* memory, WorkerVerb verb, uint64_t offset, uint64_t bytes) {
  return static_cast<CudaMemoryOfWorker*>(memory)->About(verb, offset, bytes);
}

}  // namespace

CudaWorker::CudaWorker() {
  int sockets[2];
  FQ_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  const std::string argument = "--worker=" + std::to_string(sockets[1]);
  pid_ = fork();
  FQ_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    close(sockets[0]);
    execl("/proc/self/exe", "worker", argument.c_str(), nullptr);
    _exit(127);
  }
  close(sockets[1]);
  socket_ = sockets[0];
  WorkerRequest request;
  request.verb = WorkerVerb::kEvent;
  event_ = Ask(socket_, request).handle;
}

CudaWorker::~CudaWorker() {
  close(socket_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

void CudaWorker::Kill() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

std::unique_ptr<WorkerMemory> CudaWorker::Allocate(ShareKind kind, uint64_t bytes) {
  return std::make_unique<CudaMemoryOfWorker>(socket_, kind, bytes);
}

void CudaWorker::WriteLate(WorkerMemory* memory, uint64_t offset,
                           absl::Span<const std::byte> bytes) {
  Ask(socket_, About(memory, WorkerVerb::kWriteLate, offset, bytes.size()), bytes);
}

void CudaWorker::ReadLate(WorkerMemory* memory, uint64_t offset, uint64_t bytes) {
  Ask(socket_, About(memory, WorkerVerb::kReadLate, offset, bytes));
}

std::vector<std::byte> CudaWorker::Finish() {
  const WorkerReply reply = Ask(socket_, WorkerRequest{});
  std::vector<std::byte> found(reply.bytes);
  FQ_CHECK(ReceiveAll(socket_, found.data(), found.size()));
  return found;
}

}  // namespace fq
