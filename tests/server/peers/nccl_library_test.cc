// Which libraries are taken for NCCL, and that what is declared of NCCL is what nccl.h says.
#include "server/peers/nccl_library.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>

#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

namespace fq {
namespace {

TEST(NcclLibrary, ThatIsMissing_IsNamed) {
  const auto library = NcclLibrary::Open("/nowhere/libnccl.so.2");
  EXPECT_TRUE(absl::IsNotFound(library.status())) << library.status();
  EXPECT_NE(library.status().message().find("/nowhere/libnccl.so.2"), std::string::npos);
}

TEST(NcclLibrary, ThatIsTooOld_IsRefusedWithBothVersions) {
  const auto library = NcclLibrary::Open(FQ_NCCL_OLD);
  EXPECT_TRUE(absl::IsFailedPrecondition(library.status())) << library.status();
  EXPECT_NE(library.status().message().find("21701, must be 21800"), std::string::npos);
}

TEST(NcclLibrary, ThatLacksAFunction_IsRefused) {
  const auto library = NcclLibrary::Open(FQ_NCCL_WITHOUT_SEND);
  EXPECT_TRUE(absl::IsNotFound(library.status())) << library.status();
  EXPECT_NE(library.status().message().find("it has no ncclGetUniqueId"), std::string::npos);
}

// The library of requirements/base.txt, where the Python environment has been made.
TEST(NcclLibrary, OfTheRequirements_IsTaken) {
  const std::string path = std::string(FQ_SOURCE_DIR) +
                           "/.venv/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2";
  if (!std::ifstream(path).good()) return;
  const auto library = NcclLibrary::Open(path);
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ((*library)->version, "2.29.7");
  EXPECT_TRUE((*library)->Check(kNcclSuccess, "").ok());
  EXPECT_TRUE((*library)->Check(kNcclInProgress, "").ok());
  const absl::Status failed = (*library)->Check(2, "ncclSend");
  EXPECT_TRUE(absl::IsUnavailable(failed));
  EXPECT_EQ(failed.message().substr(0, 10), "ncclSend: ");
}

#if __has_include(<nccl.h>)
// Members keep their places from version to version; new ones come behind.
TEST(NcclLibrary, DeclarationsAreThoseOfTheHeader) {
  static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
  EXPECT_EQ(kNcclSuccess, static_cast<int>(ncclSuccess));
  EXPECT_EQ(kNcclInProgress, static_cast<int>(ncclInProgress));
  EXPECT_EQ(kNcclUint8, static_cast<int>(ncclUint8));
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  const NcclConfig ours;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.blocking, theirs.blocking);
  EXPECT_LE(sizeof(ours), sizeof(theirs));
  EXPECT_EQ(offsetof(NcclConfig, blocking), offsetof(ncclConfig_t, blocking));
  EXPECT_EQ(offsetof(NcclConfig, max_ctas), offsetof(ncclConfig_t, maxCTAs));
  EXPECT_EQ(offsetof(NcclConfig, net_name), offsetof(ncclConfig_t, netName));
  EXPECT_EQ(offsetof(NcclConfig, split_share), offsetof(ncclConfig_t, splitShare));
}
#endif

}  // namespace
}  // namespace fq
