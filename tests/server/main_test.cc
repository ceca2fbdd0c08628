// flashquantd as a process: exit codes, output, signals.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

// Sanitizers bring their own malloc, which takes no options.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kGlibcMalloc = false;
#else
constexpr bool kGlibcMalloc = true;
#endif

class Process {
 public:
  Process(const std::string& folder, std::vector<std::string> args) : output_(folder + "/output") {
    args.insert(args.begin(), FQ_BINARY_DIR "/bin/flashquantd");
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    const int out = open(output_.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Process() {
    if (pid_ > 0) kill(pid_, SIGKILL);
  }
  void Signal(int number) { kill(pid_, number); }
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string Output() const {
    std::ostringstream text;
    text << std::ifstream(output_).rdbuf();
    return text.str();
  }

 private:
  const std::string output_;
  pid_t pid_ = -1;
};

class MainTest : public testing::Test {
 protected:
  std::vector<std::string> ServeArgs() const {
    return {"--socket=" + socket_, "--metrics-listen=", "--host-bytes=4MiB", "--drain-ms=500"};
  }
  TempFolder folder_;
  const std::string socket_ = folder_.path() + "/run/fq.sock";
};

TEST_F(MainTest, PrintConfig_PrintsAndEnds) {
  Process process(folder_.path(), {"--print-config", "--workers=3"});
  EXPECT_EQ(process.Wait(), 0);
  EXPECT_NE(process.Output().find("workers = 3\n"), std::string::npos) << process.Output();
}

TEST_F(MainTest, BadOption_ExitsWithTwoAndNamesIt) {
  Process process(folder_.path(), {"--workers=5000"});
  EXPECT_EQ(process.Wait(), 2);
  EXPECT_NE(process.Output().find("--workers = 5000"), std::string::npos) << process.Output();
}

TEST_F(MainTest, Sigterm_DrainsAndExitsWithZero) {
  for (int number : {SIGTERM, SIGINT}) {
    const TempFolder output;
    Process process(output.path(), ServeArgs());
    ASSERT_TRUE(Eventually([&] { return process.Output().find(" serving ") != std::string::npos; }))
        << process.Output();
    struct stat info {};
    ASSERT_EQ(stat(socket_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    ASSERT_EQ(stat((folder_.path() + "/run").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    process.Signal(number);
    EXPECT_EQ(process.Wait(), 0);
    EXPECT_NE(process.Output().find(" stopped "), std::string::npos) << process.Output();
    EXPECT_EQ(process.Output().find("malloc_not_tuned") == std::string::npos, kGlibcMalloc);
    EXPECT_NE(access(socket_.c_str(), F_OK), 0);
  }
}

TEST_F(MainTest, SecondNodeOnTheSocket_ExitsWithOneAndTheFirstGoesOn) {
  Process first(folder_.path(), ServeArgs());
  ASSERT_TRUE(Eventually([&] { return first.Output().find(" serving ") != std::string::npos; }));
  const TempFolder other;
  Process second(other.path(), ServeArgs());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_NE(second.Output().find("another process listens"), std::string::npos) << second.Output();
  EXPECT_EQ(access(socket_.c_str(), F_OK), 0);
  first.Signal(SIGTERM);
  EXPECT_EQ(first.Wait(), 0);
}

}  // namespace
}  // namespace fq
