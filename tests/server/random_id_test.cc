#include "server/random_id.h"

#include <gtest/gtest.h>

#include <set>

#include "server/to_bytes.h"

namespace fq {
namespace {

TEST(RandomId, Thousand_AreDifferent) {
  std::set<RandomId> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(*MakeRandomId());
  EXPECT_EQ(ids.size(), 1000u);
}

TEST(RandomId, Bytes_GoThereAndBack) {
  const RandomId id = *MakeRandomId();
  EXPECT_EQ(ToBytes(id).size(), 16u);
  EXPECT_EQ(ToRandomId(ToBytes(id)), id);
}

}  // namespace
}  // namespace fq
