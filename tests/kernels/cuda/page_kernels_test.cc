// Encode and decode over an engine's paged rows in device memory. Runs on a GPU (make test-gpu) and
// on the emulated one (cuda_emulated_test).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/codec/checksum.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cpu/element.h"
#include "kernels/cuda/decode_pages.h"
#include "kernels/cuda/encode_pages.h"
#include "kernels/cuda/page_runs.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"
#include "tests/testing/reference_codec.h"
#include "tests/testing/row_tolerance.h"

#ifdef FQ_EMULATED
#include <cuda_emulation.h>
#endif

namespace fq {
namespace {

constexpr int kHeads = 2, kBlocks = 11;
constexpr std::byte kGuard{0xA5};

// Lists take seconds to make on the emulated GPU and minutes under racecheck; one case has them.
bool WithLists() {
#ifdef FQ_EMULATED
  return false;
#else
  return std::getenv("FQ_TEST_WITHOUT_LISTS") == nullptr;
#endif
}

// How an engine holds its rows, and what is encoded.
struct Scene {
  int head_size;
  DType dtype;
  int block_tokens;
  PageKind kind;
  bool refined;
};

std::string NameOf(const testing::TestParamInfo<Scene>& info) {
  const Scene& s = info.param;
  static constexpr const char* kKinds[] = {"Exact", "Base", "", "Universal"};
  return std::string(kKinds[static_cast<int>(s.kind)]) + (s.refined ? "Refined" : "") +
         std::to_string(s.head_size) + "x" + std::to_string(s.block_tokens) + "t" +
         std::to_string(static_cast<int>(s.dtype));
}

// Four pages: two of head 0, two of head 1; the last of each is short, the first a sink block.
class PageKernelsTest : public testing::TestWithParam<Scene> {
 protected:
  static constexpr int kPages = 4, kRowSet = 2;

  void SetUp() override {
    auto set = CodecSet::Parse(BuildCodecSet(1, kHeads, d(), 5));
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *set;
    auto coders = CoderTables::Create(*set_, WithLists());
    ASSERT_TRUE(coders.ok()) << coders.status();
    coders_ = std::make_unique<CoderTables>(std::move(*coders));
    FillRows();
    MakeJobs();
  }

  const Scene& scene() const { return GetParam(); }
  int d() const { return scene().head_size; }
  int bytes() const { return ElementBytes(scene().dtype); }
  // Blocks of [K | V] x [tokens][heads][d + 8]: no stride is the product of the dimensions.
  int64_t head_stride() const { return d() + 8; }
  int64_t token_stride() const { return kHeads * head_stride() + 16; }
  int64_t block_stride() const { return 2 * scene().block_tokens * token_stride(); }
  int64_t Element(int side, int64_t position, int head) const {
    const int64_t block = blocks_[position / scene().block_tokens];
    return block * block_stride() + side * scene().block_tokens * token_stride() +
           position % scene().block_tokens * token_stride() + head * head_stride();
  }

  void FillRows() {
    rows_.assign(kBlocks * block_stride() * bytes(), kGuard);
    blocks_ = {7, 2, 9, 0, 10, 4, 1, 8, 5, 3, 6};
    std::vector<float> row(d());
    for (int64_t position = 0; position < 130 + First(); ++position) {
      for (int i = 0; i < 2 * kHeads; ++i) {
        const HeadCodec& codec = i % 2 == 0 ? set_->k(0, i / 2) : set_->v(0, i / 2);
        MakeRow(codec, d(), 31 * position + i, row.data());
        for (int c = 0; c < d(); ++c) {
          StoreElement(scene().dtype, row[c],
                       rows_.data() + (Element(i % 2, position, i / 2) + c) * bytes());
        }
      }
    }
  }

  // Pages need not start where the engine's blocks do.
  int First() const { return scene().block_tokens == 16 ? 0 : 5; }

  void MakeJobs() {
    device_blocks_ = Copy(blocks_.data(), blocks_.size() * sizeof(int32_t));
    for (int i = 0; i < kPages; ++i) {
      const bool sink = i % 2 == 0;
      const int head = i / 2, first = First() + (sink ? 0 : kBlockTokens);
      PageJob job;
      job.blocks = device_blocks_.as<int32_t>() + first / scene().block_tokens;
      job.first_token = first % scene().block_tokens;
      job.coder = job.head = static_cast<int16_t>(head);
      job.tokens = static_cast<uint8_t>(sink ? 64 : 37 + i);
      job.sink = sink;
      primary_bytes_[i] = PageBytes({scene().kind, scene().dtype, d(), sink}, &Profile(i));
      refinement_bytes_[i] =
          PageBytes({PageKind::kRefinement, scene().dtype, d(), sink}, &Profile(i));
      primary_[i] = Allocate(primary_bytes_[i]);
      job.primary = primary_[i].as<std::byte>();
      if (scene().refined) {
        refinement_[i] = Allocate(refinement_bytes_[i]);
        job.refinement = refinement_[i].as<std::byte>();
      }
      jobs_.push_back(job);
    }
    const uint64_t nothing[2 * kPages] = {};
    checksums_ = Copy(nothing, sizeof(nothing));
    for (int i = 0; i < kPages; ++i) {
      jobs_[i].primary_checksum = checksums_.as<uint64_t>() + i;
      jobs_[i].refinement_checksum = checksums_.as<uint64_t>() + kPages + i;
      jobs_[i].flag = i;
      jobs_[i].rows = kRowSet;
    }
    device_jobs_ = Copy(jobs_.data(), jobs_.size() * sizeof(PageJob));
    broken_ = Copy(nothing, kPages);
  }

  // The jobs of the next launches: every page so many times, in changing order.
  void SetJobs(int copies) {
    std::vector<PageJob> jobs;
    for (int i = 0; i < copies; ++i) {
      for (int page = 0; page < kPages; ++page) jobs.push_back(jobs_[(page + i) % kPages]);
    }
    device_jobs_ = Copy(jobs.data(), jobs.size() * sizeof(PageJob));
    jobs_count_ = static_cast<int>(jobs.size());
  }

  const CodecProfile& Profile(int page) const { return set_->profile(0, page / 2); }

  static DeviceBuffer Allocate(size_t size) {
    auto buffer = DeviceBuffer::Allocate(size);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return std::move(*buffer);
  }
  static DeviceBuffer Copy(const void* host, size_t size) {
    auto buffer = DeviceBuffer::CopyOf(host, size);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return std::move(*buffer);
  }
  static std::vector<std::byte> Read(const void* device, size_t size) {
    std::vector<std::byte> bytes(size);
    EXPECT_EQ(cudaMemcpy(bytes.data(), device, size, cudaMemcpyDeviceToHost), cudaSuccess);
    return bytes;
  }

  PageJobs Jobs() const {
    PageJobs jobs;
    jobs.jobs = device_jobs_.as<PageJob>();
    jobs.count = jobs_count_;
    jobs.refined = scene().refined;
    jobs.broken = broken_.as<uint8_t>();
    return jobs;
  }

  // What the jobs take for their rows is in place kRowSet; the sets before it are null.
  DeviceBuffer Rows(const DeviceBuffer& buffer) const {
    PagedRows sets[kRowSet + 1];
    PagedRows& rows = sets[kRowSet];
    rows.k = buffer.as<std::byte>();
    rows.v = buffer.as<std::byte>() + scene().block_tokens * token_stride() * bytes();
    rows.block_stride = block_stride();
    rows.token_stride = token_stride();
    rows.head_stride = head_stride();
    rows.block_tokens = scene().block_tokens;
    return Copy(sets, sizeof(sets));
  }

  void Encode() {
    for (int i = 0; i < kPages; ++i) {  // so that what is not written shows
      const std::vector<std::byte> guard(std::max(primary_bytes_[i], refinement_bytes_[i]), kGuard);
      for (const DeviceBuffer* page : {&primary_[i], &refinement_[i]}) {
        ASSERT_EQ(
            cudaMemcpy(page->as<std::byte>(), guard.data(), page->bytes(), cudaMemcpyHostToDevice),
            cudaSuccess);
      }
    }
    const DeviceBuffer rows = Copy(rows_.data(), rows_.size());
    const DeviceBuffer sets = Rows(rows);
    const absl::Status status = EncodePages(scene().kind, d(), coders_.get(), Jobs(),
                                            {sets.as<PagedRows>(), scene().dtype}, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  }

  // The engine's memory after decoding into guard bytes.
  std::vector<std::byte> Decode(Domain domain) {
    const std::vector<std::byte> guard(rows_.size(), kGuard);
    const DeviceBuffer rows = Copy(guard.data(), guard.size());
    const DeviceBuffer sets = Rows(rows);
    const absl::Status status = DecodePages({scene().kind, d(), domain}, coders_.get(), Jobs(),
                                            {sets.as<PagedRows>(), scene().dtype}, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    return Read(rows.as<std::byte>(), guard.size());
  }

  std::vector<std::byte> Primary(int page) const {
    return Read(jobs_[page].primary, primary_bytes_[page]);
  }
  std::vector<std::byte> Refinement(int page) const {
    if (!scene().refined) return {};
    return Read(jobs_[page].refinement, refinement_bytes_[page]);
  }

  // The CPU's bytes of a page.
  void EncodeOnCpu(int page, std::vector<std::byte>* primary, std::vector<std::byte>* refinement) {
    EncodeTask task;
    task.kind = scene().kind;
    std::vector<std::byte> dense(2 * kBlockTokens * d() * bytes());
    for (int side : {0, 1}) {
      for (int t = 0; t < jobs_[page].tokens; ++t) {
        std::memcpy(dense.data() + (side * kBlockTokens + t) * d() * bytes(),
                    rows_.data() + Element(side, Position(page, t), page / 2) * bytes(),
                    d() * bytes());
      }
      SourceRows& rows = side == 0 ? task.source.k : task.source.v;
      rows.chunks[0] = dense.data() + side * kBlockTokens * d() * bytes();
      rows.token_stride = d();
    }
    task.head = page / 2;
    task.tokens = jobs_[page].tokens;
    task.sink = jobs_[page].sink != 0;
    primary->resize(primary_bytes_[page]);
    refinement->resize(scene().refined ? refinement_bytes_[page] : 0);
    task.primary = primary->data();
    task.refinement = scene().refined ? refinement->data() : nullptr;
    ASSERT_TRUE(CpuBackend()->Encode({set_.get(), d(), scene().dtype}, {task}).ok());
  }
  int64_t Position(int page, int token) const {
    return First() + (page % 2) * kBlockTokens + token;
  }

  ReferencePage Reference(int page, const std::vector<std::byte>& primary,
                          const std::vector<std::byte>& refinement) const {
    ReferencePage reference;
    reference.kind = scene().kind;
    reference.head_size = d();
    reference.dtype = scene().dtype;
    reference.sink = jobs_[page].sink != 0;
    reference.primary = primary.data();
    reference.refinement = refinement.empty() ? nullptr : refinement.data();
    reference.codec_set = set_.get();
    reference.head = page / 2;
    return reference;
  }

  // Calls check(index into [2][64][d], value) for every delivered element of a page, and expects
  // the guard everywhere else in memory.
  template <typename Check>
  void ForEachDelivered(const std::vector<std::byte>& memory, const Check& check) {
    std::vector<bool> written(memory.size() / bytes());
    for (int page = 0; page < kPages; ++page) {
      for (int i = 0; i < 2 * jobs_[page].tokens; ++i) {
        const int side = i / jobs_[page].tokens, token = i % jobs_[page].tokens;
        const int64_t element = Element(side, Position(page, token), page / 2);
        for (int c = 0; c < d(); ++c) {
          written[element + c] = true;
          check(page, (side * kBlockTokens + token) * d() + c,
                LoadElement(scene().dtype, memory.data() + (element + c) * bytes()));
        }
      }
    }
    for (size_t i = 0; i < memory.size(); ++i) {
      ASSERT_TRUE(written[i / bytes()] || memory[i] == kGuard) << "byte " << i;
    }
  }

  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<CoderTables> coders_;
  std::vector<std::byte> rows_;
  std::vector<int32_t> blocks_;
  std::vector<PageJob> jobs_;
  int jobs_count_ = kPages;  // of the launch
  size_t primary_bytes_[kPages], refinement_bytes_[kPages];
  DeviceBuffer device_blocks_, device_jobs_, checksums_, broken_;
  DeviceBuffer primary_[kPages], refinement_[kPages];
};

TEST_P(PageKernelsTest, Encode_PagedRows_CodesOfTheCpu) {
  Encode();
  int differ = 0, total = 0;
  for (int page = 0; page < kPages; ++page) {
    std::vector<std::byte> primary, refinement;
    EncodeOnCpu(page, &primary, &refinement);
    const auto count = [&](const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) differ += a[i] != b[i];
      total += static_cast<int>(a.size());
    };
    count(Primary(page), primary);
    count(Refinement(page), refinement);
  }
  // Tables drawn at random have more near-ties than those of codec sets, of which
  // agreement_device_test promises one in a thousand. FP32 rows meet the transform as FP16.
  const bool rounded = scene().kind == PageKind::kBase && scene().dtype == DType::kF32;
  const bool coded = scene().kind == PageKind::kBase;
  EXPECT_LE(differ, !coded ? 0 : rounded ? total / 50 : total / 500);
}

TEST_P(PageKernelsTest, Encode_Checksums_AreThoseOfTheBytes) {
  Encode();
  const std::vector<std::byte> sums = Read(checksums_.as<std::byte>(), 2 * kPages * 8);
  for (int page = 0; page < kPages; ++page) {
    uint64_t primary, refinement;
    std::memcpy(&primary, &sums[8 * page], 8);
    std::memcpy(&refinement, &sums[8 * (kPages + page)], 8);
    const std::vector<std::byte> first = Primary(page), second = Refinement(page);
    EXPECT_EQ(primary, Checksum(first.data(), first.size()));
    if (!scene().refined) continue;
    EXPECT_EQ(refinement, Checksum(second.data(), second.size()));
  }
}

TEST_P(PageKernelsTest, Decode_PagedRows_MatchReferenceAndNothingElseWritten) {
  Encode();
  std::vector<std::vector<double>> expected;
  for (int page = 0; page < kPages; ++page) {
    const auto primary = Primary(page), refinement = Refinement(page);
    expected.push_back(ReferenceRows(Reference(page, primary, refinement)));
  }
  const bool is_base = scene().kind == PageKind::kBase;
  double error = 0, energy = 0;
  ForEachDelivered(Decode(Domain::kRows), [&](int page, int i, float value) {
    const double was = expected[page][i];
    ASSERT_NEAR(value, was, RowTolerance(scene().dtype, was, 0.5, is_base))
        << "page " << page << " element " << i;
    error += (value - was) * (value - was);
    energy += was * was;
  });
  if (scene().dtype == DType::kF16) {
    EXPECT_LE(std::sqrt(error / energy), 4e-4);
  }
  for (std::byte broken : Read(broken_.as<std::byte>(), kPages)) EXPECT_EQ(broken, std::byte{0});
}

TEST_P(PageKernelsTest, DecodeCoded_PagedRows_BitForBit) {
  if (scene().kind != PageKind::kBase) return;  // only base pages have a coded domain
  Encode();
  std::vector<std::vector<float>> expected;
  for (int page = 0; page < kPages; ++page) {
    const auto primary = Primary(page), refinement = Refinement(page);
    expected.push_back(ReferenceCoded(Reference(page, primary, refinement)));
  }
  ForEachDelivered(Decode(Domain::kCoded), [&](int page, int i, float value) {
    if (jobs_[page].sink != 0 && i / d() % kBlockTokens < kSinkRows) return;  // rows, not codes
    std::byte rounded[4] = {};
    StoreElement(scene().dtype, expected[page][i], rounded);
    ASSERT_EQ(FloatBits(value), FloatBits(LoadElement(scene().dtype, rounded)));
  });
}

TEST_P(PageKernelsTest, Decode_BrokenPage_ReportedAndNotDelivered) {
  Encode();
  std::vector<std::byte> page = Primary(1);
  page[page.size() / 2] ^= std::byte{4};
  ASSERT_EQ(cudaMemcpy(jobs_[1].primary, page.data(), page.size(), cudaMemcpyHostToDevice),
            cudaSuccess);
  const std::vector<std::byte> memory = Decode(Domain::kRows);
  const std::vector<std::byte> broken = Read(broken_.as<std::byte>(), kPages);
  for (int i = 0; i < kPages; ++i) EXPECT_EQ(broken[i], std::byte(i == 1 ? 1 : 0));
  for (int i = 0; i < 2 * jobs_[1].tokens; ++i) {
    const int64_t element = Element(i % 2, Position(1, i / 2), 0);
    for (int c = 0; c < d() * bytes(); ++c) {
      ASSERT_EQ(memory[element * bytes() + c], kGuard);
    }
  }
}

// The same pages as many jobs: runs of pages of several coders, short pages and sink blocks among
// them, give the bytes that a launch of single pages gives.
TEST_P(PageKernelsTest, Decode_MoreJobsThanSinglePages_SameRows) {
  if (scene().kind != PageKind::kBase || d() != 64) return;
  Encode();
  const std::vector<std::byte> expected = Decode(Domain::kRows);
  SetJobs(kSinglePages / kPages + 3);
  EXPECT_TRUE(Decode(Domain::kRows) == expected);
}

// More pages than thread blocks: each takes several, of several coders, one behind the other.
TEST_P(PageKernelsTest, Encode_EveryPageFiveTimes_SameBytes) {
  if (scene().kind != PageKind::kBase) return;
  Encode();
  std::vector<std::vector<std::byte>> expected;
  for (int page = 0; page < kPages; ++page) {
    expected.push_back(Primary(page));
    expected.push_back(Refinement(page));
  }
  SetJobs(5);
  Encode();
  for (int page = 0; page < kPages; ++page) {
    EXPECT_TRUE(Primary(page) == expected[2 * page]) << "page " << page;
    EXPECT_TRUE(Refinement(page) == expected[2 * page + 1]) << "page " << page;
  }
}

// NaN counts as 0 in universal pages and as the mean in others; infinities and the like end at the
// range.
TEST_P(PageKernelsTest, Encode_UnusualRows_CodesOfTheCpu) {
  if (scene().kind == PageKind::kExact) return;
  const float unusual[] = {NAN, INFINITY, -INFINITY, 65504.0f, -65504.0f, 1e-7f, 0.0f};
  for (int i = 0; i < 2 * 7; ++i) {  // two of each in the second page of head 0, K and V
    const int64_t element = Element(i % 2, Position(1, 3 * i), 0) + 5 * i;
    StoreElement(scene().dtype, unusual[i / 2], rows_.data() + element * bytes());
  }
  Encode();
  std::vector<std::byte> primary, refinement;
  EncodeOnCpu(1, &primary, &refinement);
  const std::vector<std::byte> own = Primary(1);
  int differ = 0;
  for (size_t i = 0; i < own.size(); ++i) differ += own[i] != primary[i];
  const int total = static_cast<int>(own.size());
  EXPECT_LE(differ, scene().kind == PageKind::kUniversal ? 0 : total / 50);
}

// Candidate lists hold the nearest entry of every cell, but for what no point that is looked at
// finds: the codes of a look at all entries, nearly always.
class CandidateListsTest : public PageKernelsTest {};

TEST_P(CandidateListsTest, Encode_WithAndWithout_SameCodes) {
  std::vector<std::byte> bytes[2];
  for (bool with_lists : {false, true}) {
    coders_ = std::make_unique<CoderTables>(*CoderTables::Create(*set_, with_lists));
    Encode();
    for (int page = 0; page < kPages; ++page) {
      for (std::byte byte : Primary(page)) bytes[with_lists].push_back(byte);
      for (std::byte byte : Refinement(page)) bytes[with_lists].push_back(byte);
    }
  }
  ASSERT_EQ(bytes[0].size(), bytes[1].size());
  size_t differ = 0;
  for (size_t i = 0; i < bytes[0].size(); ++i) differ += bytes[0][i] != bytes[1][i] ? 1 : 0;
  EXPECT_LE(differ, bytes[0].size() / 1000);
}

INSTANTIATE_TEST_SUITE_P(Scenes, CandidateListsTest,
                         testing::Values(Scene{64, DType::kF16, 16, PageKind::kBase, true}),
                         NameOf);

#ifdef FQ_EMULATED
TEST_P(PageKernelsTest, Emulated_EveryOrderOfThreads_SameBytes) {
  std::vector<std::byte> expected;
  for (auto schedule : {emulation::Schedule::kForward, emulation::Schedule::kBackward,
                        emulation::Schedule::kShuffled}) {
    emulation::SetSchedule(schedule);
    Encode();
    std::vector<std::byte> all = Decode(Domain::kRows);
    for (int page = 0; page < kPages; ++page) {
      for (std::byte byte : Primary(page)) all.push_back(byte);
      for (std::byte byte : Refinement(page)) all.push_back(byte);
    }
    if (expected.empty()) expected = all;
    EXPECT_TRUE(all == expected);
  }
  emulation::SetSchedule(emulation::Schedule::kForward);
}
#endif

INSTANTIATE_TEST_SUITE_P(Scenes, PageKernelsTest,
                         testing::Values(Scene{64, DType::kF16, 16, PageKind::kBase, true},
                                         Scene{64, DType::kF32, 128, PageKind::kBase, true},
                                         Scene{96, DType::kBF16, 32, PageKind::kBase, true},
                                         Scene{128, DType::kF16, 64, PageKind::kBase, false},
                                         Scene{64, DType::kF16, 32, PageKind::kBase, false},
                                         Scene{96, DType::kBF16, 16, PageKind::kBase, false},
                                         Scene{128, DType::kBF16, 16, PageKind::kBase, true},
                                         Scene{256, DType::kF16, 64, PageKind::kBase, true},
                                         Scene{96, DType::kF16, 16, PageKind::kExact, false},
                                         Scene{64, DType::kF32, 32, PageKind::kExact, false},
                                         Scene{96, DType::kBF16, 128, PageKind::kUniversal, false},
                                         Scene{64, DType::kF32, 64, PageKind::kUniversal, false},
                                         Scene{256, DType::kBF16, 64, PageKind::kUniversal, false},
                                         Scene{128, DType::kF16, 16, PageKind::kUniversal, false}),
                         NameOf);

TEST(DecodePages, UnknownHeadSize_NamesBoth) {
  EXPECT_EQ(DecodePages({PageKind::kExact, 80, Domain::kRows}, nullptr, {}, {}, nullptr).message(),
            "head_size is 80, not 64, 96, 128 or 256");
  EXPECT_EQ(EncodePages(PageKind::kExact, 80, nullptr, {}, {}, nullptr).message(),
            "head_size is 80, not 64, 96, 128 or 256");
}

}  // namespace
}  // namespace fq
