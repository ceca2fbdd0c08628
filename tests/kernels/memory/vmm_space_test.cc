// Over a stand-in of the driver, which is stricter and fails when told; memory_device_test is the
// same on a GPU.
#include "kernels/memory/vmm_space.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "kernels/memory/ahead_space.h"
#include "tests/testing/driver_stand_in.h"

namespace fq {
namespace {

constexpr size_t kGranule = size_t{2} << 20;

class VmmSpaceTest : public testing::Test {
 protected:
  VmmSpaceTest() { Driver() = DriverStandIn(); }
  ~VmmSpaceTest() override {
    space_.reset();
    EXPECT_EQ(Driver().handles, 0);
    EXPECT_EQ(Driver().mappings, 0);
    EXPECT_EQ(Driver().reservations, 0);
  }
  void Create(uint64_t bytes) { space_ = CreateVmmSpace(0, bytes).value(); }

  // The same with all of it ahead, where there are reservations for it; `vmm` is what is below.
  static std::unique_ptr<MemorySpace> CreateAhead(uint64_t bytes, VmmSpace*& vmm) {
    auto space = CreateVmmSpace(0, bytes).value();
    vmm = space.get();
    return CreateAheadSpace(std::move(space), {bytes, bytes});
  }

  std::unique_ptr<VmmSpace> space_;
};

TEST_F(VmmSpaceTest, Create_TakesWholeGranulesAtOnce) {
  Create(5 * kGranule + 1);
  EXPECT_EQ(space_->granule_bytes(), kGranule);
  EXPECT_EQ(space_->granules(), 5u);
  EXPECT_EQ(space_->free_granules(), 5u);
  EXPECT_EQ(Driver().handles, 5);
  EXPECT_FALSE(space_->on_host());
}

TEST_F(VmmSpaceTest, Create_ManyGranules_MakesThemLarger) {
  Driver().free_bytes = uint64_t{1} << 40;
  Create(512 * kGranule - 1);
  EXPECT_EQ(space_->granule_bytes(), kGranule);
  Create(512 * kGranule);
  EXPECT_EQ(space_->granule_bytes(), 2 * kGranule);
  EXPECT_EQ(space_->granules(), 256u);
  Create(uint64_t{64} << 30);
  EXPECT_EQ(space_->granule_bytes(), 16 * kGranule);
  EXPECT_EQ(space_->granules(), 2048u);
}

TEST_F(VmmSpaceTest, Create_TooLittle_NamesBothValues) {
  const auto space = CreateVmmSpace(0, kGranule - 1);
  EXPECT_TRUE(absl::IsInvalidArgument(space.status()));
  EXPECT_EQ(space.status().message(),
            "asked for 2097151 bytes of device memory, must be at least 2097152");
}

TEST_F(VmmSpaceTest, Create_MoreThanIsFree_NamesBothAndTakesNothing) {
  const auto space = CreateVmmSpace(0, uint64_t{1} << 30);
  EXPECT_TRUE(absl::IsResourceExhausted(space.status()));
  EXPECT_EQ(space.status().message(),
            "asked for 1073741824 bytes of device memory, 67108864 of 85899345920 are free");
  EXPECT_EQ(Driver().handles, 0);
}

TEST_F(VmmSpaceTest, Create_AnotherError_NamesTheCall) {
  Driver().fail = "cuMemCreate";
  Driver().fail_after = 3;
  EXPECT_EQ(CreateVmmSpace(0, 8 * kGranule).status().ToString(),
            "INTERNAL: cuMemCreate: the stand-in says no");
}

TEST_F(VmmSpaceTest, Create_WithoutDriver_SaysSo) {
  Driver().present = false;
  EXPECT_EQ(CreateVmmSpace(0, kGranule).status().ToString(), "INTERNAL: cudaSetDevice: no driver");
}

TEST_F(VmmSpaceTest, Committed_HoldsBytes_UntilItIsTakenBack) {
  Create(8 * kGranule);
  std::byte* begin = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(begin + 2 * kGranule, 3 * kGranule));
  std::memset(begin + 2 * kGranule, 7, 3 * kGranule);
  EXPECT_EQ(space_->free_granules(), 5u);
  space_->Decommit(begin + 3 * kGranule, kGranule);
  EXPECT_EQ(space_->free_granules(), 6u);
  EXPECT_EQ(begin[2 * kGranule], std::byte{7});
  EXPECT_EQ(begin[5 * kGranule - 1], std::byte{7});
  EXPECT_DEATH(begin[3 * kGranule] = std::byte{1}, "");
  EXPECT_TRUE(space_->Commit(begin + 3 * kGranule, kGranule));
  space_->Unreserve(begin, 8 * kGranule);
  EXPECT_EQ(space_->free_granules(), 8u);
}

TEST_F(VmmSpaceTest, Commit_MoreThanIsLeft_ChangesNothing) {
  Create(4 * kGranule);
  std::byte* begin = space_->Reserve(8 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, 2 * kGranule));
  EXPECT_FALSE(space_->Commit(begin + 2 * kGranule, 3 * kGranule));
  EXPECT_EQ(space_->free_granules(), 2u);
  EXPECT_TRUE(space_->Commit(begin + 2 * kGranule, 2 * kGranule));
  EXPECT_FALSE(space_->Commit(begin + 4 * kGranule, kGranule));
}

TEST_F(VmmSpaceTest, Commit_DriverFails_ChangesNothing) {
  Create(4 * kGranule);
  std::byte* begin = space_->Reserve(4 * kGranule);
  for (const char* call : {"cuMemMap", "cuMemSetAccess"}) {
    Driver().fail = call;
    Driver().fail_after = std::string(call) == "cuMemMap" ? 2 : 0;
    EXPECT_FALSE(space_->Commit(begin, 4 * kGranule)) << call;
    EXPECT_EQ(space_->free_granules(), 4u) << call;
    EXPECT_EQ(Driver().mappings, 0) << call;
  }
  Driver().fail.clear();
  EXPECT_TRUE(space_->Commit(begin, 4 * kGranule));
}

TEST_F(VmmSpaceTest, Reserve_DriverFails_IsNull) {
  Create(kGranule);
  Driver().fail = "cuMemAddressReserve";
  EXPECT_EQ(space_->Reserve(kGranule), nullptr);
}

TEST_F(VmmSpaceTest, Decommit_DriverFails_GranuleIsNotUsedAgain) {
  Create(2 * kGranule);
  std::byte* begin = space_->Reserve(4 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, kGranule));
  Driver().fail = "cuMemUnmap";
  space_->Decommit(begin, kGranule);
  EXPECT_EQ(space_->free_granules(), 1u);
  EXPECT_FALSE(space_->Commit(begin + kGranule, 2 * kGranule));
  EXPECT_TRUE(space_->Commit(begin + kGranule, kGranule));
  Driver().fail.clear();
  --Driver().mappings;  // the lost one stays the driver's
}

TEST_F(VmmSpaceTest, Export_IsTheSameMemory) {
  Create(2 * kGranule);
  std::byte* begin = space_->Reserve(2 * kGranule);
  ASSERT_TRUE(space_->Commit(begin, 2 * kGranule));
  begin[kGranule + 5] = std::byte{9};
  const auto fd = space_->Export(begin + kGranule);
  ASSERT_TRUE(fd.ok()) << fd.status();
  char byte = 0;
  EXPECT_EQ(pread(*fd, &byte, 1, 5), 1);
  EXPECT_EQ(byte, 9);
  close(*fd);
  EXPECT_TRUE(absl::IsInvalidArgument(space_->Export(begin + 1).status()));
}

// By another thread, for which the device is made current; the stand-in refuses it otherwise.
TEST_F(VmmSpaceTest, MappedAhead_IsHadAndCanBeExported) {
  VmmSpace* vmm = nullptr;
  const auto space = CreateAhead(4 * kGranule, vmm);
  std::byte* begin = space->Reserve(4 * kGranule);
  ASSERT_TRUE(space->Commit(begin, kGranule));
  while (vmm->free_granules() > 0) std::this_thread::yield();  // or this test has failed
  ASSERT_TRUE(space->Commit(begin + kGranule, 2 * kGranule));
  begin[2 * kGranule + 5] = std::byte{9};
  const auto fd = vmm->Export(begin + 2 * kGranule);
  ASSERT_TRUE(fd.ok()) << fd.status();
  char byte = 0;
  EXPECT_EQ(pread(*fd, &byte, 1, 5), 1);
  EXPECT_EQ(byte, 9);
  close(*fd);
  space->Unreserve(begin, 4 * kGranule);
  EXPECT_EQ(vmm->free_granules(), 4u);
}

TEST_F(VmmSpaceTest, MappedAhead_GivesWayToAnotherReservation) {
  VmmSpace* vmm = nullptr;
  const auto space = CreateAhead(4 * kGranule, vmm);
  std::byte* first = space->Reserve(4 * kGranule);
  ASSERT_TRUE(space->Commit(first, kGranule));
  while (vmm->free_granules() > 0) std::this_thread::yield();  // or this test has failed
  std::byte* second = space->Reserve(4 * kGranule);
  ASSERT_TRUE(space->Commit(second, 3 * kGranule));
  std::memset(second, 1, 3 * kGranule);
  EXPECT_FALSE(space->Commit(first + kGranule, kGranule));
  space->Unreserve(first, 4 * kGranule);
  space->Unreserve(second, 4 * kGranule);
}

// The driver refuses the thread: it ends, and what others commit is mapped when the driver is well.
TEST_F(VmmSpaceTest, MapAhead_DriverFails_NothingElseDoes) {
  Driver().fail = "cuMemSetAccess";
  VmmSpace* vmm = nullptr;
  auto space = CreateAhead(4 * kGranule, vmm);
  std::byte* begin = space->Reserve(4 * kGranule);
  EXPECT_FALSE(space->Commit(begin, kGranule));  // has waited for the thread, or ended it
  space->Unreserve(begin, 4 * kGranule);
  EXPECT_EQ(vmm->free_granules(), 4u);
  EXPECT_EQ(Driver().mappings, 0);
  Driver().fail.clear();
  begin = space->Reserve(4 * kGranule);
  ASSERT_TRUE(space->Commit(begin, 4 * kGranule));
  std::memset(begin, 1, 4 * kGranule);
  space.reset();  // with what is mapped
}

}  // namespace
}  // namespace fq
