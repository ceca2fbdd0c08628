#include "server/descriptor.h"

#include <openssl/sha.h>

#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

struct Field {
  std::string name;
  std::string value;    // as hashed
  std::string printed;  // as shown
};

Field Text(std::string name, const std::string& value) {
  return {std::move(name), value, absl::StrCat("'", absl::CHexEscape(value), "'")};
}

Field Number(std::string name, uint64_t value) {
  return {std::move(name), absl::StrCat(value), absl::StrCat(value)};
}

// In the order of the fingerprint.
std::vector<Field> FieldsOf(const Descriptor& d) {
  std::vector<Field> fields = {
      Text("model", d.model),
      Text("weights_digest", d.weights_digest),
      Number("layers", d.layers),
      Number("kv_heads", d.kv_heads),
      Number("head_size", d.head_size),
      Number("dtype", static_cast<uint64_t>(WireNumber(d.dtype))),
      Text("rope", d.rope),
      {"codec_set_id", d.codec_set_id,
       d.codec_set_id.empty() ? "none" : absl::BytesToHexString(d.codec_set_id)},
  };
  for (const auto& [key, value] : d.extra) {
    fields.push_back(Text("extra key", key));
    fields.push_back(Text(absl::StrCat("extra[", absl::CHexEscape(key), "]"), value));
  }
  return fields;
}

void Append(std::string& text, const std::string& value) {
  for (int shift = 0; shift < 32; shift += 8) {
    text.push_back(static_cast<char>((value.size() >> shift) & 0xff));
  }
  text.append(value);
}

}  // namespace

Fingerprint FingerprintOf(const Descriptor& descriptor) {
  std::string text;
  for (const Field& field : FieldsOf(descriptor)) Append(text, field.value);
  Fingerprint fingerprint;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), fingerprint.data());
  return fingerprint;
}

absl::Status CheckSame(const Descriptor& known, const Descriptor& asked) {
  std::vector<Field> ours = FieldsOf(known), theirs = FieldsOf(asked);
  for (size_t i = 0; i < ours.size() && i < theirs.size(); ++i) {
    if (ours[i].name == theirs[i].name && ours[i].value == theirs[i].value) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("namespace_descriptor.", theirs[i].name, " = ", theirs[i].printed,
                     ": the namespace was opened with ", ours[i].printed));
  }
  if (ours.size() == theirs.size()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("namespace_descriptor.extra has ", asked.extra.size(),
                   " pairs: the namespace was opened with ", known.extra.size()));
}

}  // namespace fq
