// flashquantd as a process of its own, on a Unix socket in a folder of its own: for tests that
// freeze it, kill it and start it again. One thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace fq {

class NodeProcess {
 public:
  // Starts it with these arguments beside --socket and waits until it listens; the test fails when
  // it does not.
  explicit NodeProcess(std::vector<std::string> arguments);
  ~NodeProcess();
  NodeProcess(const NodeProcess&) = delete;
  NodeProcess& operator=(const NodeProcess&) = delete;

  std::string endpoint() const { return "unix://" + socket(); }
  std::string socket() const { return folder_ + "/fq.sock"; }
  const std::string& folder() const { return folder_; }

  // Of --listen with port 0, as its log says.
  int tcp_port() const;

  void Freeze();  // SIGSTOP; returns when every thread stands still
  void Thaw();
  void Kill();   // SIGKILL, and waits
  void Start();  // again, after Kill

 private:
  bool Listens() const;

  std::vector<std::string> arguments_;
  std::string folder_;
  pid_t process_ = -1;
};

}  // namespace fq
