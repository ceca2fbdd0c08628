// The peer's end of a connection: a non-blocking socket, with TLS or without. One thread, but for
// HangUp.
#pragma once

#include <poll.h>

#include <cstddef>
#include <memory>
#include <optional>

#include <openssl/ssl.h>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/segments.h"

namespace fq {

using TlsConnection = std::unique_ptr<SSL, decltype(&SSL_free)>;

class PeerStream {
 public:
  explicit PeerStream(OwnedFd socket) : socket_(std::move(socket)), tls_(nullptr, SSL_free) {}

  // From here on with TLS. `tls` uses this object's socket.
  void UseTls(TlsConnection tls) { tls_ = std::move(tls); }

  // One step: true when done. Unauthenticated, with OpenSSL's reason: it failed.
  absl::StatusOr<bool> Handshake();

  // Bytes moved; 0: it would block; nothing: the peer has gone, or broke the rules of TLS.
  std::optional<size_t> Read(absl::Span<std::byte> to);
  std::optional<size_t> Write(absl::Span<const std::byte> from);

  // What to poll for before the next Read, Write or Handshake that would block.
  short read_events() const { return read_events_; }
  short write_events() const { return write_events_; }
  // Read has bytes without a poll.
  bool has_pending() const { return tls_ != nullptr && SSL_pending(tls_.get()) > 0; }

  // Says goodbye, if TLS has one.
  void Close();
  // Any thread: Read and Write end.
  void HangUp();

  int fd() const { return socket_.get(); }
  const SSL* tls() const { return tls_.get(); }  // null without

 private:
  std::optional<size_t> TlsResult(int result, size_t bytes, short& events);

  OwnedFd socket_;
  TlsConnection tls_;  // after the socket it uses
  short read_events_ = POLLIN;
  short write_events_ = POLLOUT;
};

}  // namespace fq
