#include "kernels/cpu/attend_head.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/reference_codec.h"

namespace fq {
namespace {

constexpr int kD = 64;

// Pages of all kinds behind each other: coded and plain rows share one softmax.
TEST(AttendHead, PagesOfMixedKinds_MatchesDoubleReference) {
  const auto set = CodecSet::Parse(BuildCodecSet(1, 1, kD, 31)).value();
  const Backend::Context context{set.get(), kD, DType::kF32};
  std::vector<float> rows(128 * kD);
  for (int i = 0; i < 128; ++i) {
    MakeRow(i < 64 ? set->k(0, 0) : set->v(0, 0), kD, i, &rows[i * kD]);
  }
  std::vector<std::vector<std::byte>> bytes;
  std::vector<AttendTask::Page> pages;
  std::vector<double> k, v;
  const PageKind kinds[] = {PageKind::kBase, PageKind::kExact, PageKind::kUniversal,
                            PageKind::kBase};
  for (int i = 0; i < 4; ++i) {
    const bool sink = i == 0;
    bytes.emplace_back(PageBytes({kinds[i], DType::kF32, kD, sink}, &set->profile(0, 0)));
    EncodeTask task;
    task.kind = kinds[i];
    task.sink = sink;
    task.tokens = 64 - i;
    task.primary = bytes.back().data();
    task.source.k.chunks[0] = reinterpret_cast<const std::byte*>(rows.data());
    task.source.v.chunks[0] = reinterpret_cast<const std::byte*>(&rows[64 * kD]);
    task.source.k.token_stride = task.source.v.token_stride = kD;
    ASSERT_TRUE(ScalarBackend()->Encode(context, {task}).ok());
    pages.push_back({kinds[i], bytes.back().data(), nullptr, task.tokens, sink});
    ReferencePage reference;
    reference.kind = kinds[i];
    reference.sink = sink;
    reference.primary = bytes.back().data();
    reference.codec_set = set.get();
    const std::vector<double> decoded = ReferenceRows(reference);
    k.insert(k.end(), decoded.begin(), decoded.begin() + task.tokens * kD);
    v.insert(v.end(), decoded.begin() + 64 * kD, decoded.begin() + (64 + task.tokens) * kD);
  }
  std::vector<float> q(kD), out(kD);
  for (int c = 0; c < kD; ++c) q[c] = 0.3f * std::sin(static_cast<float>(c));
  float lse;
  AttendTask task;
  task.q = q.data();
  task.out = out.data();
  task.lse = &lse;
  task.pages = pages;
  for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
    AttendHead(*primitives, context, task);
    const AttendedRow expected = AttendReference(k, v, kD, q.data(), 1.0);
    EXPECT_NEAR(lse, expected.lse, 1e-4);
    for (int c = 0; c < kD; ++c) EXPECT_NEAR(out[c], expected.out[c], 1e-4);
  }
}

}  // namespace
}  // namespace fq
