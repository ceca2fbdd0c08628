#include "kernels/cuda/merge_partials.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/codec/float_convert.h"
#include "kernels/cuda/device_buffer.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

struct Part {
  std::vector<uint16_t> out;
  std::vector<float> lse;
};

class MergePartialsTest : public testing::TestWithParam<bool> {
 protected:
  static constexpr int kRows = 21, kHeadSize = 96;

  static float ValueOf(uint16_t bits) {
    return GetParam() ? BFloat16ToFloat(bits) : HalfToFloat(bits);
  }
  static uint16_t BitsOf(float value) {
    return GetParam() ? FloatToBFloat16(value) : FloatToHalf(value);
  }
  static Part RandomPart(uint64_t seed) {
    Random random(seed);
    Part part{std::vector<uint16_t>(kRows * kHeadSize), std::vector<float>(kRows)};
    for (uint16_t& bits : part.out) bits = BitsOf(static_cast<float>(random.Gaussian()));
    for (float& lse : part.lse) lse = static_cast<float>(4 * random.Gaussian());
    return part;
  }

  // The merge of `parts`, written over the first of them.
  static Part Merge(const std::vector<Part>& parts) {
    std::vector<DeviceBuffer> buffers;
    std::vector<AttendPartial> partials;
    for (const Part& part : parts) {
      buffers.push_back(*DeviceBuffer::CopyOf(part.out.data(), 2 * part.out.size()));
      buffers.push_back(*DeviceBuffer::CopyOf(part.lse.data(), 4 * part.lse.size()));
      partials.push_back({(buffers.end() - 2)->as<void>(), (buffers.end() - 1)->as<float>()});
    }
    const MergedRows to = {kRows, kHeadSize, GetParam(), buffers[0].as<void>(),
                           buffers[1].as<float>()};
    const absl::Status status = MergePartials(partials, to, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    Part merged = parts[0];
    EXPECT_EQ(cudaMemcpy(merged.out.data(), to.out, 2 * merged.out.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    EXPECT_EQ(cudaMemcpy(merged.lse.data(), to.lse, 4 * merged.lse.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return merged;
  }
};

TEST_P(MergePartialsTest, SeveralParts_MatchDouble) {
  for (size_t count : {1, 2, 3, 8}) {
    std::vector<Part> parts;
    for (size_t i = 0; i < count; ++i) parts.push_back(RandomPart(10 * count + i));
    const Part merged = Merge(parts);
    const double unit = GetParam() ? 1.0 / 256 : 1.0 / 2048;
    for (int row = 0; row < kRows; ++row) {
      double sum = 0;
      for (const Part& part : parts) sum += std::exp(static_cast<double>(part.lse[row]));
      EXPECT_NEAR(merged.lse[row], std::log(sum), 1e-5) << row;
      for (int c = row * kHeadSize; c < (row + 1) * kHeadSize; ++c) {
        double expected = 0;
        for (const Part& part : parts) {
          expected += std::exp(static_cast<double>(part.lse[row])) / sum * ValueOf(part.out[c]);
        }
        EXPECT_NEAR(ValueOf(merged.out[c]), expected, unit * (std::fabs(expected) + 0.01)) << row;
      }
    }
  }
}

// What is in a part without tokens, NaN included, must not matter.
TEST_P(MergePartialsTest, PartsWithoutTokens_LeaveTheOthersAsTheyWere) {
  Part with = RandomPart(1), without = RandomPart(2);
  for (uint16_t& bits : without.out) bits = 0x7FFF;
  for (float& lse : without.lse) lse = -INFINITY;
  for (const auto& parts : {std::vector<Part>{with, without}, {without, with, without}}) {
    const Part merged = Merge(parts);
    EXPECT_EQ(std::memcmp(merged.out.data(), with.out.data(), 2 * with.out.size()), 0);
    for (int row = 0; row < kRows; ++row) EXPECT_NEAR(merged.lse[row], with.lse[row], 2e-6);
  }
  const Part none = Merge({without, without});
  for (uint16_t bits : none.out) EXPECT_EQ(bits, 0);
  for (float lse : none.lse) EXPECT_EQ(lse, -INFINITY);
}

TEST_P(MergePartialsTest, NaNInOneRow_StaysThere) {
  Part one = RandomPart(3), two = RandomPart(4);
  const Part before = Merge({one, two});
  two.lse[5] = NAN;
  const Part after = Merge({one, two});
  for (int row = 0; row < kRows; ++row) {
    if (row == 5) {
      EXPECT_TRUE(std::isnan(after.lse[row]) && std::isnan(ValueOf(after.out[row * kHeadSize])));
    } else {
      EXPECT_EQ(after.lse[row], before.lse[row]);
    }
  }
}

TEST_P(MergePartialsTest, ExtremeLogSumExp_NoOverflow) {
  Part one = RandomPart(5), two = RandomPart(6);
  for (float& lse : one.lse) lse = 3000.0f;
  for (float& lse : two.lse) lse = -3000.0f;
  const Part merged = Merge({two, one});
  EXPECT_EQ(merged.out, one.out);
  for (float lse : merged.lse) EXPECT_NEAR(lse, 3000.0f, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Types, MergePartialsTest, testing::Values(false, true),
                         [](const auto& of) { return of.param ? "BF16" : "FP16"; });

TEST(MergePartialsArgumentsTest, WrongCountsAndSizes_SaySo) {
  const AttendPartial partials[kMaxPartials + 1] = {};
  const MergedRows rows = {4, 64, false, nullptr, nullptr}, odd = {4, 63, false, nullptr, nullptr};
  EXPECT_EQ(MergePartials({}, rows, nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MergePartials(partials, rows, nullptr).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = MergePartials({partials, 1}, odd, nullptr);
  EXPECT_NE(status.message().find("head_size = 63"), std::string::npos) << status;
}

}  // namespace
}  // namespace fq
