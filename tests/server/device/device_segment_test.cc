// Registration packets of device memory: every field, and what becomes of them on a device.
#include "server/device/device_segment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "tests/testing/device_registration.h"

namespace fq {
namespace {

std::vector<std::byte> Bytes(const std::string& text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

absl::StatusOr<DeviceRegistration> Parse(const std::string& packet, std::vector<int> fds = {}) {
  return ParseDeviceRegistration(Bytes(packet), fds);
}

TEST(ParseDeviceRegistration, GoodPackets_GiveEveryField) {
  RegistrationPacket packet;
  packet.allocations = {{4096, {}}, {8192, {}}};
  packet.allocations[1].handle[63] = 9;
  packet.layers = {{1, 16}, {0, 0}, {1, 8176}};
  packet.event.emplace();
  (*packet.event)[0] = 7;
  const auto parsed = Parse(packet.Build());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->uuid, packet.uuid);
  ASSERT_EQ(parsed->allocations.size(), 2u);
  EXPECT_EQ(parsed->allocations[1].bytes, 8192u);
  EXPECT_EQ(parsed->allocations[1].handle[63], 9);
  ASSERT_EQ(parsed->layers.size(), 3u);
  EXPECT_EQ(parsed->layers[2].allocation, 1u);
  EXPECT_EQ(parsed->layers[2].offset, 8176u);
  ASSERT_TRUE(parsed->event.has_value());
  EXPECT_EQ((*parsed->event)[0], 7);
  packet.event.reset();
  packet.kind = 2;
  const auto with_descriptors = Parse(packet.Build(), {5, 6});
  ASSERT_TRUE(with_descriptors.ok()) << with_descriptors.status();
  EXPECT_EQ(with_descriptors->allocations[1].fd, 6);
  EXPECT_FALSE(with_descriptors->event.has_value());
}

TEST(ParseDeviceRegistration, EachBadField_IsNamedWithItsValue) {
  struct Case {
    const char* part;
    void (*spoil)(RegistrationPacket&);
    std::vector<int> fds;
  };
  const Case cases[] = {
      {"share kind = 0", [](RegistrationPacket& p) { p.kind = 0; }, {}},
      {"share kind = 3", [](RegistrationPacket& p) { p.kind = 3; }, {}},
      {"flags = 2", [](RegistrationPacket& p) { p.flags = 2; }, {}},
      {"allocations = 0", [](RegistrationPacket& p) { p.allocations.clear(); }, {}},
      {"allocations = 129",
       [](RegistrationPacket& p) {
         p.allocations.resize(129, {64, {}});
       },
       {}},
      {"layers = 0", [](RegistrationPacket& p) { p.layers.clear(); }, {}},
      {"layers = 1025", [](RegistrationPacket& p) { p.layers.resize(1025); }, {}},
      {"layers[0].allocation = 1", [](RegistrationPacket& p) { p.layers[0].allocation = 1; }, {}},
      {"layers[0].offset = 8", [](RegistrationPacket& p) { p.layers[0].offset = 8; }, {}},
      {"layers[0].offset = 4096", [](RegistrationPacket& p) { p.layers[0].offset = 4096; }, {}},
      {"bytes 20..31", [](RegistrationPacket& p) { p.zero = 1; }, {}},
      {"descriptors = 1: must be 0", [](RegistrationPacket&) {}, {3}},
      {"descriptors = 0: must be 1", [](RegistrationPacket& p) { p.kind = 2; }, {}},
  };
  for (const Case& c : cases) {
    RegistrationPacket packet;
    c.spoil(packet);
    const auto parsed = Parse(packet.Build(), c.fds);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << c.part;
    EXPECT_NE(parsed.status().message().find(c.part), absl::string_view::npos) << parsed.status();
  }
}

TEST(ParseDeviceRegistration, EveryOtherLength_IsRefused) {
  const std::string good = RegistrationPacket().Build();
  for (size_t bytes = 0; bytes < good.size() + 20; ++bytes) {
    std::string packet = good;
    packet.resize(bytes, '\0');
    EXPECT_EQ(Parse(packet).ok(), bytes == good.size()) << bytes;
  }
}

// Whoever frees the memory once it is told that the segment is gone must not be told too soon.
TEST(DeviceSegment, Presence_EndsBehindTheMappings) {
  class Mapping : public DeviceMapping {
   public:
    explicit Mapping(const std::function<void()>& unmap) : unmap_(unmap) {}
    ~Mapping() override { unmap_(); }
    std::byte* data() const override { return nullptr; }
    uint64_t bytes() const override { return 64; }

   private:
    const std::function<void()>& unmap_;
  };
  std::weak_ptr<const void> presence;
  bool was_present = false;
  const std::function<void()> unmap = [&] { was_present = !presence.expired(); };
  auto segment = DeviceSegment::Over(std::make_unique<Mapping>(unmap), 1, 64);
  presence = segment->presence();
  segment.reset();
  EXPECT_TRUE(was_present);
  EXPECT_TRUE(presence.expired());
}

}  // namespace
}  // namespace fq
