// The nine bytes before every HTTP/2 frame (RFC 9113, section 4.1).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fq {

struct FrameHeader {
  static constexpr size_t kBytes = 9;
  enum Type : uint8_t {
    kData = 0,
    kHeaders = 1,
    kResetStream = 3,
    kSettings = 4,
    kWindowUpdate = 8,
    kContinuation = 9
  };
  static constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4;

  uint32_t length = 0;  // of the payload that follows
  uint8_t type = 0, flags = 0;
  uint32_t stream = 0;

  bool Has(uint8_t flag) const { return (flags & flag) != 0; }

  // Of kBytes bytes.
  static FrameHeader Parse(const std::byte* header) {
    auto byte = [header](int i) { return std::to_integer<uint32_t>(header[i]); };
    return {byte(0) << 16 | byte(1) << 8 | byte(2), std::to_integer<uint8_t>(header[3]),
            std::to_integer<uint8_t>(header[4]),
            (byte(5) & 0x7F) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8)};
  }
};

}  // namespace fq
