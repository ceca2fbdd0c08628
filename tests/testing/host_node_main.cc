// flashquantd without a GPU, for tests of other processes: host memory in the GPU's place
// (host_device.h), sockets in NCCL's (socket_comm.h; they lie beside --socket). Takes flashquantd's
// options but --device and --nccl, and runs until SIGTERM.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "server/log.h"
#include "server/options.h"
#include "server/server.h"
#include "tests/testing/host_device.h"
#include "tests/testing/socket_comm.h"

namespace fq {
namespace {

int Main(int argc, char** argv) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const auto line = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), {});
  if (!line.ok()) {
    std::fprintf(stderr, "host_node: %s\n", line.status().ToString().c_str());
    return 2;
  }
  const Options& options = line->options;
  const auto log = Log::ToStderr(LogLevel::kInfo, LogFormat::kText);
  NodeParts parts;
  parts.log = log.get();
  // Every process is a GPU of its own.
  parts.device = std::make_unique<HostDevice>(options.device_bytes + options.peer_window_bytes,
                                              static_cast<uint32_t>(getpid()));
  parts.peers =
      std::make_unique<SocketTransport>(options.socket.substr(0, options.socket.find_last_of('/')));
  auto server = Server::Start(options, std::move(parts));
  if (!server.ok()) {
    std::fprintf(stderr, "host_node: %s\n", server.status().ToString().c_str());
    return 1;
  }
  int number = 0;
  sigwait(&signals, &number);
  (*server)->BeginDrain();
  (*server)->FinishDrain();
  return 0;
}

}  // namespace
}  // namespace fq

int main(int argc, char** argv) { return fq::Main(argc, argv); }
