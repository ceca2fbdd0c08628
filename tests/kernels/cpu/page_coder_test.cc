#include "kernels/cpu/page_coder.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/codec/chain_word.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"
#include "tests/testing/reference_codec.h"

namespace fq {
namespace {

constexpr Side kSides[] = {Side::kKey, Side::kValue};

struct CodedPage {
  std::vector<std::byte> base, refinement;
};

CodedPage RandomCodes(const CodecProfile& profile, int d, Random* random) {
  CodedPage page;
  page.base.resize(PageBytes({PageKind::kBase, DType::kF32, d, false}, &profile));
  page.refinement.resize(PageBytes({PageKind::kRefinement, DType::kF32, d, false}, &profile));
  for (std::byte& byte : page.base) byte = static_cast<std::byte>(random->Next());
  for (std::byte& byte : page.refinement) byte = static_cast<std::byte>(random->Next());
  return page;
}

// Decoding into the coded domain is normative: not one bit may differ.
TEST(DecodeCoded, RandomCodes_BitForBitAsFormatSays) {
  Random random(4);
  for (int d : {64, 96, 128, 256}) {
    const auto set = CodecSet::Parse(BuildCodecSet(1, 4, d, 8)).value();
    for (int head = 0; head < 4; ++head) {
      const CodedPage page = RandomCodes(set->profile(0, head), d, &random);
      for (bool refined : {false, true}) {
        ReferencePage reference;
        reference.head_size = d;
        reference.head = head;
        reference.primary = page.base.data();
        reference.refinement = refined ? page.refinement.data() : nullptr;
        reference.codec_set = set.get();
        const std::vector<float> expected = ReferenceCoded(reference);
        for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
          for (Side side : kSides) {
            CodedSide coded = CodedSide::Of(*set, 0, head, side);
            coded.base = page.base.data();
            coded.refinement = reference.refinement;
            alignas(64) float v[kMaxHeadSize * kPageTokens];
            DecodeCoded(*primitives, coded, v);
            for (int i = 0; i < 64 * d; ++i) {
              const float found = v[i % d * kPageTokens + i / d];
              ASSERT_EQ(found, expected[(side == Side::kKey ? 0 : 64 * d) + i])
                  << primitives->name << " d " << d << " head " << head << " value " << i;
            }
          }
        }
      }
    }
  }
}

// Compares the codes of one side with an exhaustive search in double.
class NearestCheck {
 public:
  NearestCheck(const CodecSet& set, int head, Side side) : set_(set), head_(head), side_(side) {}

  // Every byte of the base codes must name an entry as near as any other, but for rounding.
  void Run(const std::vector<std::byte>& base, const std::vector<double>& u) const {
    const CodecProfile& profile = set_.profile(0, head_);
    const auto& classes = side_ == Side::kKey ? profile.k : profile.v;
    const std::byte* codes = base.data() + (side_ == Side::kKey ? 0 : CodeBytes(profile.k));
    for (size_t group = 0; group < classes.size(); ++group) {
      const int bits = classes[group];
      if (bits == 4 || bits == 2 || bits == 1) {
        for (int b = 0; b < GroupBytes(bits); ++b) CheckByte(codes, group, bits, b, u);
      }
      codes += GroupBytes(bits);
    }
  }

 private:
  double Distance(size_t group, int bits, int byte, int entry, const std::vector<double>& u) const {
    const HeadCodec& codec = side_ == Side::kKey ? set_.k(0, head_) : set_.v(0, head_);
    const uint32_t* words = bits == 4   ? codec.base.class4 + entry
                            : bits == 2 ? codec.base.class2 + entry
                                        : codec.base.class1 + 2 * entry;
    double distance = 0;
    for (int i = 0; i < ValuesPerByte(bits); ++i) {
      const GroupPosition at = PositionOf(side_, byte * ValuesPerByte(bits) + i);
      const double value = u[at.token * set_.head_size() + 8 * group + at.channel];
      distance += std::pow(EntryValue(words, bits, i) - value, 2);
    }
    return distance;
  }

  void CheckByte(const std::byte* codes, size_t group, int bits, int byte,
                 const std::vector<double>& u) const {
    const double chosen = Distance(group, bits, byte, static_cast<int>(codes[byte]), u);
    for (int entry = 0; entry < kTableEntries; ++entry) {
      ASSERT_LE(chosen, Distance(group, bits, byte, entry, u) + 1e-4);
    }
  }

  const CodecSet& set_;
  const int head_;
  const Side side_;
};

TEST(EncodePage, BaseCodes_NameTheNearestEntry) {
  constexpr int kD = 64;
  const auto set = CodecSet::Parse(BuildCodecSet(1, 4, kD, 8)).value();
  for (int head = 0; head < 4; ++head) {
    std::vector<float> rows(128 * kD);
    for (int i = 0; i < 128; ++i) {
      MakeRow(i < 64 ? set->k(0, head) : set->v(0, head), kD, 100 * head + i, &rows[i * kD]);
    }
    std::vector<std::byte> base(
        PageBytes({PageKind::kBase, DType::kF32, kD, false}, &set->profile(0, head)));
    EncodeTask task;
    task.head = head;
    task.primary = base.data();
    task.source.k.chunks[0] = reinterpret_cast<const std::byte*>(rows.data());
    task.source.v.chunks[0] = reinterpret_cast<const std::byte*>(&rows[64 * kD]);
    task.source.k.token_stride = task.source.v.token_stride = kD;
    EncodePage(SimdPrimitives(), {set.get(), kD, DType::kF32}, task);
    for (Side side : kSides) {
      const HeadCodec& codec = side == Side::kKey ? set->k(0, head) : set->v(0, head);
      const float* from = rows.data() + (side == Side::kKey ? 0 : 64 * kD);
      std::vector<double> u(64 * kD);
      for (int i = 0; i < 64 * kD; ++i) {
        for (int k = 0; k < kD; ++k) {
          u[i] += static_cast<double>(codec.a[i % kD * kD + k]) *
                  (from[i / kD * kD + k] - static_cast<double>(codec.mu[k]));
        }
      }
      NearestCheck(*set, head, side).Run(base, u);
    }
  }
}

}  // namespace
}  // namespace fq
