// TLS of --listen: OpenSSL 3, TLS 1.2 or newer, HTTP/2 by ALPN, no sessions, no renegotiation.
#pragma once

#include <memory>
#include <string>

#include <openssl/ssl.h>

#include "absl/status/statusor.h"
#include "server/connected_peers.h"

namespace fq {

struct TlsFiles {
  std::string cert, key;  // PEM
  std::string client_ca;  // PEM; empty: clients show no certificate
};

// Certificate and key of the node. Thread-safe.
class TlsContext {
 public:
  // InvalidArgument names the option, the file and OpenSSL's reason.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Load(const TlsFiles& files);

  // The node's side of a connection over a non-blocking socket that outlives it. Internal: out of
  // memory.
  absl::StatusOr<std::unique_ptr<SSL, decltype(&SSL_free)>> Accept(int fd) const;

 private:
  using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;
  explicit TlsContext(Context context) : context_(std::move(context)) {}
  const Context context_;
};

// Whether a client could use these files: --fetch-tls-ca (`client_ca`), -cert and -key, each may be
// empty. InvalidArgument as of Load.
absl::Status CheckFetchTls(const TlsFiles& files);

// Names in the certificate that the client showed; nothing when it showed none.
std::optional<Certificate> ClientCertificate(const SSL* ssl);

}  // namespace fq
