#include "tests/testing/node_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "tests/testing/eventually.h"

extern char** environ;

namespace fq {

NodeProcess::NodeProcess(std::vector<std::string> arguments)
    : arguments_(std::move(arguments)), folder_("/tmp/fqp-XXXXXX") {
  EXPECT_NE(mkdtemp(folder_.data()), nullptr);
  const std::string patience_ms = std::to_string(std::chrono::milliseconds(kPatience).count());
  arguments_.insert(
      arguments_.begin(),
      {FQ_BINARY_DIR "/bin/flashquantd", "--socket", socket(), "--metrics-listen", "", "--workers",
       "2", "--max-deadline-ms", patience_ms, "--default-deadline-ms", patience_ms, "--lease-ms",
       std::to_string(std::chrono::milliseconds(std::chrono::hours(1)).count())});
  Start();
}

NodeProcess::~NodeProcess() {
  Kill();
  std::filesystem::remove_all(folder_);
}

void NodeProcess::Start() {
  std::vector<char*> argv;
  for (std::string& argument : arguments_) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string log = folder_ + "/log";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_CREAT | O_APPEND | O_WRONLY, 0600);
  EXPECT_EQ(posix_spawn(&process_, argv[0], &actions, nullptr, argv.data(), environ), 0) << argv[0];
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_TRUE(Eventually([this] { return Listens(); })) << "see " << log;
}

bool NodeProcess::Listens() const {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket().c_str(), sizeof(address.sun_path) - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool ok = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return ok;
}

int NodeProcess::tcp_port() const {
  constexpr char kField[] = "tcp_port=\"";
  int port = 0;
  EXPECT_TRUE(Eventually([&] {  // the log may be a little behind the socket
    std::ifstream in(folder_ + "/log");
    const std::string log((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const size_t at = log.find(kField), end = log.find('\n', at);
    if (end == std::string::npos) return false;
    port = std::atoi(log.c_str() + at + sizeof(kField) - 1);
    return true;
  })) << "no tcp_port in "
      << folder_ << "/log";
  return port;
}

void NodeProcess::Freeze() {
  kill(process_, SIGSTOP);
  int status = 0;
  EXPECT_EQ(waitpid(process_, &status, WUNTRACED), process_);  // until every thread stands
}

void NodeProcess::Thaw() { kill(process_, SIGCONT); }

void NodeProcess::Kill() {
  if (process_ <= 0) return;
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

}  // namespace fq
