// Builds packets of operation 3 of the segment socket, good ones and others.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "server/random_id.h"

namespace fq {

struct RegistrationPacket {
  struct Allocation {
    uint64_t bytes;
    IpcHandle handle;
  };
  struct Layer {
    uint32_t allocation = 0;
    uint64_t offset = 0;
  };
  RandomId session{};
  uint32_t zero = 0;
  DeviceUuid uuid{{1, 2, 3}};
  uint32_t kind = 1;
  std::optional<uint32_t> flags;  // else by `event`
  std::optional<IpcHandle> event;
  std::vector<Allocation> allocations = {{4096, {}}};
  std::vector<Layer> layers = {{0, 0}};

  std::string Build() const {
    std::string packet(reinterpret_cast<const char*>(session.data()), session.size());
    for (uint32_t value : {3u, zero, zero, zero}) Append(packet, value);
    Append(packet, uuid);
    Append(packet, kind);
    Append(packet, static_cast<uint32_t>(allocations.size()));
    Append(packet, static_cast<uint32_t>(layers.size()));
    Append(packet, flags.value_or(event.has_value() ? 1 : 0));
    Append(packet, event.value_or(IpcHandle{}));
    for (const Allocation& allocation : allocations) {
      Append(packet, allocation.bytes);
      Append(packet, allocation.handle);
    }
    for (const Layer& layer : layers) {
      Append(packet, layer.allocation);
      Append(packet, uint32_t{0});
      Append(packet, layer.offset);
    }
    return packet;
  }

 private:
  template <typename T>
  static void Append(std::string& packet, const T& value) {
    packet.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
};

}  // namespace fq
