#include "server/random_id.h"

#include <openssl/rand.h>

#include <cstring>

#include "absl/status/status.h"
#include "kernels/base/check.h"

namespace fq {

absl::StatusOr<RandomId> MakeRandomId() {
  RandomId id;
  if (RAND_bytes(id.data(), static_cast<int>(id.size())) != 1) {
    return absl::InternalError("the system's random generator failed");
  }
  return id;
}

RandomId ToRandomId(absl::string_view bytes) {
  RandomId id;
  FQ_CHECK(bytes.size() == id.size());
  std::memcpy(id.data(), bytes.data(), id.size());
  return id;
}

}  // namespace fq
