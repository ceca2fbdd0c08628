#include "server/connections/tls.h"

#include <openssl/err.h>
#include <openssl/x509err.h>
#include <openssl/x509v3.h>

#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr unsigned char kHttp2[] = {2, 'h', '2'};  // as ALPN writes it

// The first error is the cause; those behind it say which layers it went through.
std::string FirstReason() {
  const unsigned long error = ERR_peek_error();  // NOLINT(google-runtime-int): OpenSSL's type
  ERR_clear_error();
  if (ERR_SYSTEM_ERROR(error)) return std::generic_category().message(ERR_GET_REASON(error));
  const char* reason = ERR_reason_error_string(error);
  return reason == nullptr ? "not PEM" : reason;
}

absl::Status Refused(absl::string_view option, const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat("--", option, " = ", path, ": cannot be read: ", FirstReason()));
}

// `prefix` is "" or "fetch-".
absl::Status UseCertificate(SSL_CTX* context, absl::string_view prefix, const TlsFiles& files) {
  if (SSL_CTX_use_certificate_chain_file(context, files.cert.c_str()) != 1) {
    return Refused(absl::StrCat(prefix, "tls-cert"), files.cert);
  }
  if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) == 1) {
    return absl::OkStatus();
  }
  const int reason = ERR_GET_REASON(ERR_peek_error());
  if (reason != X509_R_KEY_VALUES_MISMATCH && reason != X509_R_KEY_TYPE_MISMATCH) {
    return Refused(absl::StrCat(prefix, "tls-key"), files.key);
  }
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("--", prefix, "tls-key = ", files.key,
                                                 ": is not the key of --", prefix,
                                                 "tls-cert = ", files.cert));
}

int ChooseHttp2(SSL*, const unsigned char** chosen, unsigned char* chosen_bytes,
                const unsigned char* offered, unsigned int offered_bytes, void*) {
  unsigned char* found = nullptr;
  if (SSL_select_next_proto(&found, chosen_bytes, kHttp2, sizeof(kHttp2), offered, offered_bytes) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

void SetRules(SSL_CTX* context) {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(context, ChooseHttp2, nullptr);
}

std::string Text(const ASN1_STRING* text) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
          static_cast<size_t>(ASN1_STRING_length(text))};
}

void TakeAlternativeNames(const X509* x509, Certificate& result) {
  const std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(x509, NID_subject_alt_name, nullptr, nullptr)),
      GENERAL_NAMES_free);
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_URI) {
      result.uris.push_back(Text(name->d.uniformResourceIdentifier));
    }
    if (name->type == GEN_DNS) result.dns_names.push_back(Text(name->d.dNSName));
  }
}

std::string CommonName(const X509* x509) {
  X509_NAME* subject = X509_get_subject_name(x509);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return std::string();
  unsigned char* utf8 = nullptr;
  const int bytes =
      ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  if (bytes < 0) return std::string();
  std::string name(reinterpret_cast<const char*>(utf8), static_cast<size_t>(bytes));
  OPENSSL_free(utf8);
  return name;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Load(const TlsFiles& files) {
  ERR_clear_error();
  Context context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("OpenSSL makes no context");
  SetRules(context.get());
  FQ_RETURN_IF_ERROR(UseCertificate(context.get(), "", files));
  if (!files.client_ca.empty()) {
    STACK_OF(X509_NAME)* names = SSL_load_client_CA_file(files.client_ca.c_str());
    if (names == nullptr || SSL_CTX_load_verify_file(context.get(), files.client_ca.c_str()) != 1) {
      sk_X509_NAME_pop_free(names, X509_NAME_free);
      return Refused("tls-client-ca", files.client_ca);
    }
    SSL_CTX_set_client_CA_list(context.get(), names);
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  return std::unique_ptr<TlsContext>(new TlsContext(std::move(context)));
}

absl::Status CheckFetchTls(const TlsFiles& files) {
  ERR_clear_error();
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("OpenSSL makes no context");
  if (!files.client_ca.empty() &&
      SSL_CTX_load_verify_file(context.get(), files.client_ca.c_str()) != 1) {
    return Refused("fetch-tls-ca", files.client_ca);
  }
  return files.cert.empty() ? absl::OkStatus() : UseCertificate(context.get(), "fetch-", files);
}

absl::StatusOr<std::unique_ptr<SSL, decltype(&SSL_free)>> TlsContext::Accept(int fd) const {
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context_.get()), SSL_free);
  if (ssl == nullptr || SSL_set_fd(ssl.get(), fd) != 1) {
    return absl::InternalError("OpenSSL makes no connection");
  }
  SSL_set_accept_state(ssl.get());
  return ssl;
}

std::optional<Certificate> ClientCertificate(const SSL* ssl) {
  const std::unique_ptr<X509, decltype(&X509_free)> x509(SSL_get1_peer_certificate(ssl), X509_free);
  if (x509 == nullptr) return std::nullopt;
  Certificate result;
  TakeAlternativeNames(x509.get(), result);
  result.common_name = CommonName(x509.get());
  return result;
}

}  // namespace fq
