#include "client/cpp/keys.h"

#include <openssl/evp.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"

namespace fq::client {
namespace {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    FQ_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  void Add(const void* bytes, size_t count) {
    FQ_CHECK(EVP_DigestUpdate(context_.get(), bytes, count) == 1);
  }
  void Add(absl::string_view bytes) { Add(bytes.data(), bytes.size()); }
  void AddU32(uint32_t value) {
    const uint8_t bytes[4] = {static_cast<uint8_t>(value), static_cast<uint8_t>(value >> 8),
                              static_cast<uint8_t>(value >> 16), static_cast<uint8_t>(value >> 24)};
    Add(bytes, sizeof(bytes));
  }
  void AddWithLength(absl::string_view bytes) {
    AddU32(static_cast<uint32_t>(bytes.size()));
    Add(bytes);
  }
  void AddDecimal(uint64_t value) { AddWithLength(absl::StrCat(value)); }

  std::array<uint8_t, 32> Finish() {
    std::array<uint8_t, 32> digest;
    FQ_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) == 1);
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

Fingerprint FingerprintOf(const Descriptor& d) {
  Sha256 sha;
  sha.AddWithLength(d.model);
  sha.AddWithLength(d.weights_digest);
  sha.AddDecimal(d.layers);
  sha.AddDecimal(d.kv_heads);
  sha.AddDecimal(d.head_size);
  sha.AddDecimal(static_cast<uint64_t>(d.dtype));
  sha.AddWithLength(d.rope);
  sha.AddWithLength(d.codec_set_id);
  for (const auto& [key, value] : d.extra) {
    sha.AddWithLength(key);
    sha.AddWithLength(value);
  }
  return sha.Finish();
}

KeyChain::KeyChain(const Fingerprint& fingerprint, absl::string_view tenant,
                   absl::string_view salt) {
  Sha256 sha;
  sha.Add("flashquant/v1");
  sha.Add(fingerprint.data(), fingerprint.size());
  sha.AddWithLength(tenant);
  sha.AddWithLength(salt);
  last_ = sha.Finish();
}

BlockKey KeyChain::Next(absl::Span<const uint32_t> tokens, absl::string_view extra) {
  FQ_CHECK(tokens.size() == kBlockTokens);
  Sha256 sha;
  sha.Add(last_.data(), last_.size());
  for (uint32_t token : tokens) sha.AddU32(token);
  sha.AddWithLength(extra);
  return last_ = sha.Finish();
}

std::vector<BlockKey> KeysOf(KeyChain chain, absl::Span<const uint32_t> tokens) {
  std::vector<BlockKey> keys;
  for (size_t at = 0; at + kBlockTokens <= tokens.size(); at += kBlockTokens) {
    keys.push_back(chain.Next(tokens.subspan(at, kBlockTokens), ""));
  }
  return keys;
}

}  // namespace fq::client
