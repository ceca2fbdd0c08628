#include "server/connections/peer_stream.h"

#include <openssl/err.h>
#include <sys/socket.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

std::optional<size_t> PlainResult(ssize_t result) {
  if (result >= 0) return static_cast<size_t>(result);
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
  return std::nullopt;
}

}  // namespace

absl::StatusOr<bool> PeerStream::Handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(tls_.get());
  if (result == 1) return true;
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      read_events_ = POLLIN;
      return false;
    case SSL_ERROR_WANT_WRITE:
      read_events_ = POLLOUT;
      return false;
    default:
      break;
  }
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  return absl::UnauthenticatedError(
      absl::StrCat("TLS handshake: ", reason == nullptr ? "the peer has gone" : reason));
}

std::optional<size_t> PeerStream::Read(absl::Span<std::byte> to) {
  if (tls_ == nullptr) {
    const ssize_t bytes = recv(socket_.get(), to.data(), to.size(), MSG_DONTWAIT);
    return bytes == 0 ? std::nullopt : PlainResult(bytes);
  }
  size_t bytes = 0;
  ERR_clear_error();
  const int result = SSL_read_ex(tls_.get(), to.data(), to.size(), &bytes);
  return TlsResult(result, bytes, read_events_);
}

std::optional<size_t> PeerStream::Write(absl::Span<const std::byte> from) {
  if (tls_ == nullptr) {
    return PlainResult(send(socket_.get(), from.data(), from.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
  }
  size_t bytes = 0;
  ERR_clear_error();
  const int result = SSL_write_ex(tls_.get(), from.data(), from.size(), &bytes);
  return TlsResult(result, bytes, write_events_);
}

std::optional<size_t> PeerStream::TlsResult(int result, size_t bytes, short& events) {
  if (result == 1) return bytes;
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      events = POLLIN;
      return 0;
    case SSL_ERROR_WANT_WRITE:
      events = POLLOUT;
      return 0;
    default:
      return std::nullopt;
  }
}

void PeerStream::Close() {
  if (tls_ == nullptr || SSL_in_init(tls_.get()) != 0) return;
  ERR_clear_error();
  SSL_shutdown(tls_.get());
}

void PeerStream::HangUp() { shutdown(socket_.get(), SHUT_RDWR); }

}  // namespace fq
