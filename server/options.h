// Everything that can be set on a node, with its default. Only main and options.cc read flags,
// environment and files; precedence: flag, then FQ_<FLAG> in the environment, then the file of
// --config, then the default.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fq {

struct Options {
  // Listeners.
  std::string socket = "/run/flashquant/flashquant.sock";  // empty: none
  std::string socket_mode = "0600";                        // octal
  std::string listen;                                      // host:port; empty: none
  std::string tls_cert, tls_key, tls_client_ca;            // PEM files
  std::string metrics_listen = "127.0.0.1:7602";           // empty: none
  std::string tenant = "default";                          // of local callers

  // Other nodes.
  std::vector<std::string> fetch_from;  // unix:///path or host:port; none: no Fetch
  std::string fetch_tls_ca, fetch_tls_cert, fetch_tls_key;  // PEM files
  uint32_t max_fetches = 4;
  uint64_t fetch_link_bytes = uint64_t{256} << 20;
  std::vector<std::string> trusted_nodes;  // names in certificates

  // Contents.
  std::vector<std::string> codec_sets;  // .fqcs files
  uint64_t host_bytes = uint64_t{4} << 30;

  // GPU.
  std::string device;  // CUDA's number of it; empty: none
  uint64_t device_bytes = uint64_t{8} << 30;
  uint32_t device_sm_percent = 100;  // share of its multiprocessors that stores may use

  // Peer links: workers on other GPUs.
  std::string nccl;  // libnccl.so.2, by name or path; empty: no peer links
  uint32_t nccl_ctas = 24;
  uint32_t max_peer_links = 16;
  uint64_t peer_window_bytes = uint64_t{8} << 30;  // of all links
  uint32_t peer_timeout_ms = 5'000;

  // Quality (P7).
  uint32_t quality_sample = 64;      // measure one block in so many; 0: none
  double quality_drift_ratio = 1.5;  // of measured to predicted error

  // Limits.
  uint32_t workers = 0;  // 0: one per processor
  uint32_t queue_depth = 256;
  uint32_t max_connections = 128;
  uint32_t max_sessions = 256;
  uint32_t max_leases_per_session = 1024;
  uint32_t max_blocks_per_call = 1024;
  uint32_t max_namespaces = 256;
  uint32_t max_ranges_per_namespace = 64;
  uint32_t max_segments = 16;  // of one session
  uint64_t max_segment_bytes = uint64_t{64} << 30;
  uint64_t max_inline_bytes = uint64_t{16} << 20;
  uint64_t max_message_bytes = uint64_t{256} << 20;

  // Times.
  uint32_t lease_ms = 10'000;
  uint32_t default_deadline_ms = 5'000;  // of calls that bring none
  uint32_t max_deadline_ms = 30'000;
  uint32_t drain_ms = 20'000;

  // Logs.
  std::string log_level = "info";
  std::string log_format = "text";

  bool operator==(const Options& other) const;
};

// What the command line asks for.
struct CommandLine {
  enum class Action { kServe, kPrintConfig, kPrintText };
  Action action = Action::kServe;
  Options options;
  std::string text;  // of --help and --version
};

// `args` without the program's name; `environment` as NAME=value. InvalidArgument names option,
// value and what is allowed.
absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> args,
                                             absl::Span<const std::string> environment);

// InvalidArgument names the option and both values that disagree.
absl::Status CheckOptions(const Options& options);

// In the syntax of --config; parsing it gives the same options.
std::string PrintConfig(const Options& options);

// Octal text such as "0600"; checked by CheckOptions.
uint32_t SocketModeBits(const Options& options);

}  // namespace fq
