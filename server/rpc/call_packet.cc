#include "server/rpc/call_packet.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/bad_field.h"
#include "server/retry_after.h"
#include "server/rpc/status.h"

namespace fq {
namespace {

// Little-endian hosts only, as the codec is.
struct RequestHead {
  uint32_t kind;
  uint32_t zero;
  uint64_t timeout_us;
};
static_assert(sizeof(RequestHead) == 16);

struct ReplyHead {
  uint32_t code;
  uint32_t retry_after_ms;
};
static_assert(sizeof(ReplyHead) == 8);

constexpr uint64_t kMostTimeoutUs = uint64_t{24} * 3600 * 1'000'000;  // longer is this long

template <typename Head>
std::string BytesOf(const Head& head) {
  return std::string(reinterpret_cast<const char*>(&head), sizeof(head));
}

}  // namespace

std::string GreetingPacket() {
  return BytesOf(ReplyHead{kCallSocketVersion, uint32_t{kMaxCallPacketBytes}});
}

absl::StatusOr<CallPacket> ParseCallPacket(absl::string_view packet, size_t whole_bytes) {
  RequestHead head{};
  if (whole_bytes < sizeof(head) || whole_bytes > kMaxCallPacketBytes) {
    return absl::InvalidArgumentError(absl::StrCat("packet of ", whole_bytes, " bytes: must have ",
                                                   sizeof(head), "..", kMaxCallPacketBytes));
  }
  std::memcpy(&head, packet.data(), sizeof(head));
  if (head.kind < 1 || head.kind > 4) {
    return BadField("method", head.kind, "must be 1 (Store), 2 (Lookup), 3 (Load) or 4 (Release)");
  }
  if (head.zero != 0) return BadField("reserved", head.zero, "must be 0");
  CallPacket call;
  call.kind = static_cast<CallKind>(head.kind);
  if (head.timeout_us != 0) {
    call.timeout = std::chrono::microseconds(std::min(head.timeout_us, kMostTimeoutUs));
  }
  call.message = packet.substr(sizeof(head));
  return call;
}

std::string ReplyPacket(const absl::Status& status, absl::string_view message) {
  std::string packet = BytesOf(ReplyHead{static_cast<uint32_t>(ToGrpcCode(status.code())),
                                         RetryAfterMs(status).value_or(0)});
  const absl::string_view rest = status.ok() ? message : status.message();
  packet.append(rest.data(), rest.size());
  return packet;
}

}  // namespace fq
