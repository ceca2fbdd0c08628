// A client with TLS and the node's end of its connection, in one thread.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "server/connections/peer_stream.h"
#include "server/connections/tls.h"
#include "tests/server/connections/socket_pair.h"
#include "tests/testing/test_certificate.h"

namespace fq {

class TlsPair {
 public:
  // `identity` may be null. `protocol` is what the client offers by ALPN.
  TlsPair(const TlsFiles& files, const TestCertificate* identity, const std::string& protocol)
      : context_(*TlsContext::Load(files)),
        server_(std::move(sockets_.first)),
        client_context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free),
        client_(nullptr, SSL_free) {
    server_.UseTls(*context_->Accept(server_.fd()));
    if (identity != nullptr) {
      SSL_CTX_use_certificate_chain_file(client_context_.get(), identity->cert.c_str());
      SSL_CTX_use_PrivateKey_file(client_context_.get(), identity->key.c_str(), SSL_FILETYPE_PEM);
    }
    client_.reset(SSL_new(client_context_.get()));
    const std::string alpn = static_cast<char>(protocol.size()) + protocol;
    SSL_set_alpn_protos(client_.get(), reinterpret_cast<const unsigned char*>(alpn.data()),
                        static_cast<unsigned>(alpn.size()));
    SSL_set_fd(client_.get(), sockets_.second.get());
    SSL_set_connect_state(client_.get());
  }

  // False when the node refuses.
  bool ShakeHands() {
    for (int i = 0; i < 20; ++i) {
      SSL_do_handshake(client_.get());
      const absl::StatusOr<bool> done = server_.Handshake();
      if (!done.ok()) return false;
      if (*done) return true;
    }
    return false;
  }

  PeerStream& server() { return server_; }
  SSL* client() { return client_.get(); }
  void CloseClient() { sockets_.second = OwnedFd(-1); }

 private:
  std::pair<OwnedFd, OwnedFd> sockets_ = SocketPair();
  std::unique_ptr<TlsContext> context_;
  PeerStream server_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> client_context_;
  TlsConnection client_;
};

}  // namespace fq
