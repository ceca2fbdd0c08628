// How to reach a node and how long to wait for it. Plain values.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "client/cpp/breaker.h"

namespace fq::client {

inline constexpr char kDefaultEndpoint[] = "unix:///run/flashquant/flashquant.sock";

// PEM texts. Without `ca` the connection is not encrypted; `cert` and `key` prove who we are.
struct Tls {
  std::string ca;
  std::string cert;
  std::string key;
};

struct ClientOptions {
  std::string endpoint = kDefaultEndpoint;  // unix:///path, or host:port
  Tls tls;                                  // host:port only

  // Of calls that bring none, opening a session included.
  absl::Duration deadline = absl::Seconds(2);

  Breaker::Options breaker;

  // Larger replies are refused.
  uint64_t max_message_bytes = uint64_t{64} << 20;

  // For the node's logs, at most 128 bytes.
  std::string client_name = "fq_client";
};

}  // namespace fq::client
