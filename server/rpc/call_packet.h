// Packets of the call socket (proto/call_socket.md). Pure functions, any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fq {

inline constexpr uint32_t kCallSocketVersion = 1;
inline constexpr size_t kMaxCallPacketBytes = 128 << 10;  // either way

enum class CallKind : uint32_t { kStore = 1, kLookup = 2, kLoad = 3, kRelease = 4 };

struct CallPacket {
  CallKind kind = CallKind::kStore;
  std::optional<std::chrono::nanoseconds> timeout;  // none: the caller does not say
  absl::string_view message;                        // of the packet's own bytes
};

// What the node sends first.
std::string GreetingPacket();

// `whole_bytes`: what the packet had before the socket cut it. InvalidArgument names field and
// value.
absl::StatusOr<CallPacket> ParseCallPacket(absl::string_view packet, size_t whole_bytes);

// `message` is sent with OK only.
std::string ReplyPacket(const absl::Status& status, absl::string_view message);

}  // namespace fq
