#include "server/options.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

using Action = CommandLine::Action;

std::string WriteFile(const TempFolder& folder, const std::string& text) {
  const std::string path = folder.path() + "/node.conf";
  std::ofstream(path) << text;
  return path;
}

TEST(Options, NothingGiven_Defaults) {
  const auto line = ParseCommandLine({}, {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options, Options());
  EXPECT_EQ(line->action, Action::kServe);
}

TEST(Options, Precedence_FlagThenEnvironmentThenFileThenDefault) {
  const TempFolder folder;
  const std::string path = WriteFile(
      folder, "workers = 3\nqueue-depth = 30\nmax-sessions = 33 # three\nhost-bytes = 2MiB\n");
  const auto line = ParseCommandLine({"--config=" + path, "--workers", "1"},
                                     {"FQ_WORKERS=2", "FQ_QUEUE_DEPTH=20", "OTHER=1"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.workers, 1u);
  EXPECT_EQ(line->options.queue_depth, 20u);
  EXPECT_EQ(line->options.max_sessions, 33u);
  EXPECT_EQ(line->options.host_bytes, 2u << 20);
  EXPECT_EQ(line->options.max_segments, Options().max_segments);
}

TEST(Options, ConfigFromEnvironment_IsRead) {
  const TempFolder folder;
  const std::string path = WriteFile(folder, "tenant = \"team a\"\n");
  const auto line = ParseCommandLine({}, {"FQ_CONFIG=" + path});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.tenant, "team a");
}

TEST(Options, CodecSets_RepeatOrList) {
  auto line = ParseCommandLine({"--codec-set", "a", "--codec-set=b"}, {"FQ_CODEC_SET=c"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.codec_sets, (std::vector<std::string>{"a", "b"}));
  line = ParseCommandLine({}, {"FQ_CODEC_SET=a,b"});
  EXPECT_EQ(line->options.codec_sets, (std::vector<std::string>{"a", "b"}));
  line = ParseCommandLine({"--codec-set=", "--workers=1"}, {});
  EXPECT_TRUE(line->options.codec_sets.empty());
}

TEST(Options, PrintConfig_ReadsBackTheSame) {
  const TempFolder folder;
  auto line = ParseCommandLine(
      {"--print-config", "--host-bytes=5GiB", "--codec-set=a,b", "--metrics-listen=", "--tenant=t",
       "--quality-drift-ratio=1.75", "--quality-sample=0"},
      {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->action, Action::kPrintConfig);
  const std::string path = WriteFile(folder, PrintConfig(line->options));
  const auto again = ParseCommandLine({"--config", path}, {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->options, line->options);
}

TEST(Options, HelpAndVersion_AreTexts) {
  const auto help = ParseCommandLine({"--help"}, {});
  EXPECT_EQ(help->action, Action::kPrintText);
  EXPECT_NE(help->text.find("--host-bytes"), std::string::npos);
  EXPECT_NE(help->text.find("FQ_HOST_BYTES"), std::string::npos);
  EXPECT_EQ(ParseCommandLine({"--version"}, {})->text, "flashquantd " FQ_VERSION "\n");
}

TEST(Options, SocketModeBits_AreOctal) {
  Options options;
  options.socket_mode = "0660";
  EXPECT_EQ(SocketModeBits(options), 0660u);
}

struct Refused {
  std::vector<std::string> args;
  std::vector<std::string> parts;  // of the message: option and both values
};

class RefusedOptions : public testing::TestWithParam<Refused> {};

TEST_P(RefusedOptions, NameOptionAndBothValues) {
  const auto line = ParseCommandLine(GetParam().args, {});
  ASSERT_FALSE(line.ok());
  EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& part : GetParam().parts) {
    EXPECT_NE(line.status().message().find(part), absl::string_view::npos) << line.status();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, RefusedOptions,
    testing::Values(
        Refused{{"--host-bytes=5"}, {"host-bytes", "5", "1048576"}},
        Refused{{"--host-bytes=-1"}, {"host-bytes", "-1"}},
        Refused{{"--host-bytes=1e400"}, {"host-bytes", "1e400"}},
        Refused{{"--nccl=libnccl.so.2"}, {"nccl", "libnccl.so.2", "needs --device"}},
        Refused{{"--nccl-ctas=0"}, {"nccl-ctas", "0", "1..64"}},
        Refused{{"--nccl-ctas=65"}, {"nccl-ctas", "65", "1..64"}},
        Refused{{"--max-peer-links=0"}, {"max-peer-links", "0", "1"}},
        Refused{{"--peer-window-bytes=31MiB"}, {"peer-window-bytes", "32505856", "33554432"}},
        Refused{{"--peer-timeout-ms=9"}, {"peer-timeout-ms", "9", "10"}},
        Refused{{"--quality-sample=1000000001"}, {"quality-sample", "1000000001", "1000000000"}},
        Refused{{"--quality-sample=-1"}, {"quality-sample", "-1"}},
        Refused{{"--quality-drift-ratio=1"}, {"quality-drift-ratio", "1", "1.05"}},
        Refused{{"--quality-drift-ratio=10.5"}, {"quality-drift-ratio", "10.5", "10"}},
        Refused{{"--quality-drift-ratio=nan"}, {"quality-drift-ratio", "nan"}},
        Refused{{"--workers=1025"}, {"workers", "1025", "1024"}},
        Refused{{"--workers=-1"}, {"workers", "-1", "number >= 0"}},
        Refused{{"--workers=x"}, {"workers", "x", "number >= 0"}},
        Refused{{"--workers"}, {"workers"}},
        Refused{{"--queue-depth=0"}, {"queue-depth", "0", "1"}},
        Refused{{"--max-sessions=0"}, {"max-sessions", "0", "1"}},
        Refused{{"--max-leases-per-session=0"}, {"max-leases-per-session", "0", "1"}},
        Refused{{"--max-blocks-per-call=0"}, {"max-blocks-per-call", "0", "1"}},
        Refused{{"--max-namespaces=0"}, {"max-namespaces", "0", "1"}},
        Refused{{"--max-ranges-per-namespace=0"}, {"max-ranges-per-namespace", "0", "1"}},
        Refused{{"--max-segments=0"}, {"max-segments", "0", "1"}},
        Refused{{"--max-segment-bytes=1"}, {"max-segment-bytes", "1", "4096"}},
        Refused{{"--max-inline-bytes=2GiB"}, {"max-inline-bytes", "2147483648", "1073741824"}},
        Refused{{"--lease-ms=9"}, {"lease-ms", "9", "10"}},
        Refused{{"--max-deadline-ms=0"}, {"max-deadline-ms", "0", "1"}},
        Refused{{"--default-deadline-ms=9", "--max-deadline-ms=8"},
                {"default-deadline-ms", "9", "8"}},
        Refused{{"--drain-ms=3600001"}, {"drain-ms", "3600001", "3600000"}},
        Refused{{"--socket=", "--listen="}, {"--socket", "--listen"}},
        Refused{{"--socket=relative"}, {"socket", "relative", "absolute"}},
        Refused{{"--socket=/" + std::string(100, 's')}, {"socket", "101", "100"}},
        Refused{{"--socket-mode=0900"}, {"socket-mode", "0900"}},
        Refused{{"--socket-mode=0066"}, {"socket-mode", "0066"}},
        Refused{{"--socket-mode=01777"}, {"socket-mode", "01777"}},
        Refused{{"--listen=0.0.0.0:1"}, {"listen", "0.0.0.0:1", "tls-cert", "plaintext"}},
        Refused{{"--listen=1"}, {"listen", "1", "host:port"}},
        Refused{{"--tls-cert=c"}, {"tls-cert", "c", "tls-key"}},
        Refused{{"--tls-cert=c", "--tls-key=k"}, {"tls-cert", "c", "needs --listen"}},
        Refused{{"--tls-key=k"}, {"tls-key", "k", "tls-cert"}},
        Refused{{"--tls-client-ca=a"}, {"tls-client-ca", "a", "tls-cert"}},
        Refused{{"--fetch-from=10.0.0.2:7600"}, {"fetch-from", "10.0.0.2:7600", "fetch-tls-ca"}},
        Refused{{"--fetch-from=node-b"}, {"fetch-from", "node-b", "host:port"}},
        Refused{{"--fetch-tls-cert=c"}, {"fetch-tls-cert", "c", "fetch-tls-key"}},
        Refused{{"--fetch-tls-cert=c", "--fetch-tls-key=k"}, {"fetch-tls-cert", "fetch-tls-ca"}},
        Refused{{"--fetch-link-bytes=0"}, {"fetch-link-bytes", "0", "1"}},
        Refused{{"--max-fetches=0"}, {"max-fetches", "0", "1..64"}},
        Refused{{"--max-fetches=65"}, {"max-fetches", "65", "1..64"}},
        Refused{{"--trusted-node=node-b"}, {"trusted-node", "node-b", "tls-client-ca"}},
        Refused{{"--listen=127.0.0.1:1", "--tls-cert=c", "--tls-key=k", "--tls-client-ca=a",
                 "--trusted-node=" + std::string(257, 'n')},
                {"trusted-node", "257", "256"}},
        Refused{{"--metrics-listen=x"}, {"metrics-listen", "x", "host:port"}},
        Refused{{"--tenant="}, {"tenant", "0", "1..256"}},
        Refused{{"--tenant=" + std::string(257, 't')}, {"tenant", "257", "256"}},
        Refused{{"--log-level=loud"}, {"log-level", "loud", "debug"}},
        Refused{{"--log-format=xml"}, {"log-format", "xml", "json"}},
        Refused{{"--unknown=1"}, {"unknown"}}, Refused{{"stray"}, {"stray"}},
        Refused{{"--config=/nowhere"}, {"--config = /nowhere", "No such file"}}));

TEST(Options, BadFiles_AreRefusedWithTheirPath) {
  const TempFolder folder;
  for (const std::string& text :
       {std::string("unknown = 1\n"), std::string("workers = 1\nworkers = 2\n"),
        std::string("[section]\nworkers = 1\n"), std::string("config = other\n"),
        std::string("workers = -1\n"), std::string((1 << 20) + 1, '#')}) {
    const auto line = ParseCommandLine({"--config=" + WriteFile(folder, text)}, {});
    ASSERT_FALSE(line.ok()) << text.substr(0, 80);
    EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// The spelling of the environment is the likely slip.
TEST(Options, UnknownNameInAFile_IsNamedWithTheFile) {
  const TempFolder folder;
  for (const char* text : {"host_bytes = 1GiB\n", "host-bytes 1GiB\n"}) {
    const std::string path = WriteFile(folder, text);
    const auto line = ParseCommandLine({"--config=" + path}, {});
    EXPECT_NE(line.status().message().find("--config = " + path + ": 'host"),
              absl::string_view::npos)
        << line.status();
  }
}

TEST(Options, OtherNodes_AreLoopbackSocketsOrBehindTls) {
  const auto line = ParseCommandLine(
      {"--fetch-from=unix:///run/b.sock,127.0.0.1:7600", "--fetch-from=localhost:7601"}, {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.fetch_from.size(), 3u);
  EXPECT_TRUE(ParseCommandLine({"--fetch-from=node-b:7600", "--fetch-tls-ca=a"}, {}).ok());
  EXPECT_TRUE(ParseCommandLine({"--fetch-from="}, {})->options.fetch_from.empty());
}

TEST(Options, NetworkWithTls_IsAccepted) {
  EXPECT_TRUE(ParseCommandLine({"--listen=0.0.0.0:1", "--tls-cert=c", "--tls-key=k"}, {}).ok());
  EXPECT_TRUE(ParseCommandLine({"--listen=127.0.0.1:1"}, {}).ok());
}

}  // namespace
}  // namespace fq
