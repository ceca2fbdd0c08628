// Sessions against a real node, well, frozen, killed, restarted and full.
#include "client/cpp/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>

#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "tests/testing/eventually.h"
#include "tests/testing/node_process.h"

namespace fq::client {
namespace {

constexpr std::byte kPoison{0xA5};

class SessionTest : public testing::Test {
 protected:
  static constexpr size_t kBlocks = 4;

  std::unique_ptr<Client> Connect() const {
    ClientOptions options;
    options.endpoint = node_.endpoint();
    options.deadline = absl::FromChrono(kPatience);
    options.breaker = {1'000'000, absl::Seconds(1)};  // out of the way
    return *Client::Create(options);
  }

  static SessionSpec Spec() {
    SessionSpec spec;
    spec.namespace_name = "test";
    spec.descriptor.model = "m";
    spec.descriptor.layers = 2;
    spec.descriptor.kv_heads = 2;
    spec.descriptor.head_size = 64;
    spec.descriptor.dtype = DType::kF16;
    spec.range = WholeModel(spec.descriptor);
    return spec;
  }
  static uint64_t BlockBytes() { return DenseBlockBytes(Spec().descriptor, Spec().range); }

  static std::vector<BlockKey> Keys(const Session& session, size_t blocks, uint32_t first) {
    std::vector<uint32_t> tokens(blocks * kBlockTokens);
    std::iota(tokens.begin(), tokens.end(), first);
    return KeysOf(session.Chain("salt"), tokens);
  }

  // Finite FP16 values.
  static void Fill(absl::Span<std::byte> bytes, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t at = 0; at + 2 <= bytes.size(); at += 2) {
      const uint16_t value = static_cast<uint16_t>(0x3000 | (random() & 0x8fff));
      std::memcpy(&bytes[at], &value, sizeof(value));
    }
  }

  StoreCall Storing(absl::Span<const BlockKey> keys) const {
    StoreCall call;
    call.profile = Profile::kExact;
    call.keys = keys;
    call.layout = DenseLayout(Spec().descriptor, Spec().range);
    call.places = DensePlaces(0, BlockBytes(), keys.size());
    return call;
  }
  LoadCall Loading(const Match& match, uint32_t blocks) const {
    LoadCall call;
    call.lease = match.lease;
    call.block_count = blocks;
    call.layout = DenseLayout(Spec().descriptor, Spec().range);
    call.places = DensePlaces(0, BlockBytes(), blocks);
    return call;
  }
  static bool All(const std::vector<BlockStatus>& statuses, BlockStatus wanted) {
    return !statuses.empty() && std::all_of(statuses.begin(), statuses.end(),
                                            [&](BlockStatus s) { return s == wanted; });
  }

  // Stores blocks of `seed` through the segment and leaves them in it.
  void StoreThrough(Session& session, const std::shared_ptr<Segment>& segment, uint64_t seed) {
    const auto keys = Keys(session, kBlocks, 0);
    Fill(segment->memory(), seed);
    StoreCall call = Storing(keys);
    call.segment = segment;
    const auto statuses = session.Store(call);
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    ASSERT_TRUE(All(*statuses, BlockStatus::kOk));
  }

  Match Find(Session& session, size_t blocks, absl::Duration deadline) {
    const auto keys = Keys(session, blocks, 0);
    LookupCall call;
    call.keys = keys;
    call.deadline = deadline;
    return session.Lookup(call);
  }

  NodeProcess node_{{"--host-bytes", "4MiB"}};
};

TEST_F(SessionTest, StoreAndLoad_ThroughASegment_IsBitForBit) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  const std::vector<std::byte> stored(segment->memory().begin(), segment->memory().end());
  std::fill(segment->memory().begin(), segment->memory().end(), kPoison);
  const Match match = Find(*session, kBlocks + 1, {});
  ASSERT_TRUE(match.node.ok()) << match.node;
  EXPECT_EQ(match.matched_blocks, kBlocks);
  EXPECT_EQ(match.profiles.size(), kBlocks);
  LoadCall call = Loading(match, kBlocks);
  call.segment = segment;
  const Loaded loaded = session->Load(call);
  ASSERT_TRUE(All(loaded.statuses, BlockStatus::kOk)) << loaded.node;
  EXPECT_EQ(std::memcmp(stored.data(), segment->memory().data(), kBlocks * BlockBytes()), 0);
}

TEST_F(SessionTest, StoreAndLoad_Inline_IsBitForBit) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto keys = Keys(*session, kBlocks, 0);
  std::vector<std::byte> pages(kBlocks * BlockBytes());
  Fill(absl::MakeSpan(pages), 2);
  StoreCall store = Storing(keys);
  store.payload = pages;
  const auto statuses = session->Store(store);
  ASSERT_TRUE(statuses.ok() && All(*statuses, BlockStatus::kOk)) << statuses.status();
  std::vector<std::byte> loaded_pages(2 * BlockBytes(), kPoison);
  LoadCall load = Loading(Find(*session, kBlocks, {}), 2);
  load.first_block = 1;
  load.destination = absl::MakeSpan(loaded_pages);
  const Loaded loaded = session->Load(load);
  ASSERT_TRUE(All(loaded.statuses, BlockStatus::kOk)) << loaded.node;
  EXPECT_EQ(std::memcmp(&pages[BlockBytes()], loaded_pages.data(), loaded_pages.size()), 0);
}

TEST_F(SessionTest, Store_Again_SaysExists) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  const auto keys = Keys(*session, kBlocks, 0);
  StoreCall call = Storing(keys);
  call.segment = segment;
  EXPECT_TRUE(All(*session->Store(call), BlockStatus::kExists));
}

TEST_F(SessionTest, Lookup_OtherTokens_IsAMissOfAnAnsweringNode) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto keys = Keys(*session, kBlocks, 777);
  LookupCall call;
  call.keys = keys;
  const Match match = session->Lookup(call);
  EXPECT_TRUE(match.node.ok()) << match.node;
  EXPECT_EQ(match.matched_blocks, 0u);
}

TEST_F(SessionTest, Load_UnknownLease_MissesAndTouchesNothing) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  std::vector<std::byte> pages(BlockBytes(), kPoison);
  LoadCall call = Loading(Match{}, 1);
  call.lease.fill(9);
  call.destination = absl::MakeSpan(pages);
  const Loaded loaded = session->Load(call);
  EXPECT_TRUE(absl::IsNotFound(loaded.node)) << loaded.node;
  EXPECT_TRUE(All(loaded.statuses, BlockStatus::kMiss));
  EXPECT_EQ(std::count(pages.begin(), pages.end(), kPoison), static_cast<ssize_t>(pages.size()));
}

TEST_F(SessionTest, Release_CountsWhatTheNodeKnew) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  const Match match = Find(*session, kBlocks, {});
  LeaseId unknown;
  unknown.fill(3);
  EXPECT_EQ(*session->Release({match.lease, unknown}, {}), 1u);
}

TEST_F(SessionTest, Attend_LeasedBlocks_GivesAnOutputPerHead) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  const Match match = Find(*session, kBlocks, {});
  const std::vector<float> q(2 * 3 * 64, 0.1f);
  AttendCall call;
  call.lease = match.lease;
  call.layer = 1;
  call.block_count = kBlocks;
  call.q_heads_per_kv_head = 3;
  call.scale = 0.125f;
  call.q = q;
  const auto attended = session->Attend(call);
  ASSERT_TRUE(attended.ok()) << attended.status();
  EXPECT_EQ(attended->out.size(), q.size());
  EXPECT_EQ(attended->lse.size(), 6u);
  // 256 tokens of equal weight would give ln 256.
  EXPECT_GT(attended->lse[0], 3);
}

TEST_F(SessionTest, Open_OtherDescriptor_IsFailedPrecondition) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  SessionSpec other = Spec();
  other.descriptor.model = "other";
  EXPECT_TRUE(absl::IsFailedPrecondition(client->Open(other, {}).status()));
}

TEST_F(SessionTest, Full_EverythingLeased_SaysFullAtOnce) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  std::vector<Match> leases;
  std::vector<BlockStatus> last;
  for (uint32_t chain = 0; chain < 40 && !All(last, BlockStatus::kFull); ++chain) {
    const auto keys = Keys(*session, kBlocks, 1 + chain * 1000);
    StoreCall call = Storing(keys);
    call.segment = segment;
    last = *session->Store(call);
    LookupCall lookup;
    lookup.keys = keys;
    leases.push_back(session->Lookup(lookup));
  }
  EXPECT_TRUE(All(last, BlockStatus::kFull));
}

TEST_F(SessionTest, FrozenNode_EveryCallMissesInTime) {
  constexpr absl::Duration kDeadline = absl::Milliseconds(100), kSlack = absl::Milliseconds(10);
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  const auto keys = Keys(*session, kBlocks, 0);
  const Match match = Find(*session, kBlocks, {});
  node_.Freeze();
  const std::function<void()> calls[] = {
      [&] {
        const Match missed = Find(*session, kBlocks, kDeadline);
        EXPECT_TRUE(absl::IsDeadlineExceeded(missed.node)) << missed.node;
        EXPECT_EQ(missed.matched_blocks, 0u);
      },
      [&] {
        std::vector<std::byte> pages(BlockBytes());
        LoadCall call = Loading(match, 1);
        call.destination = absl::MakeSpan(pages);
        call.deadline = kDeadline;
        EXPECT_TRUE(All(session->Load(call).statuses, BlockStatus::kMiss));
      },
      [&] {
        StoreCall call = Storing(keys);
        call.segment = segment;
        call.deadline = kDeadline;
        EXPECT_FALSE(session->Store(call).ok());
      },
  };
  for (const auto& call : calls) {
    // The machine may be busy: of many, one must be exact.
    EXPECT_TRUE(Eventually([&] {
      const absl::Time begin = absl::Now();
      call();
      return absl::Now() - begin <= kDeadline + kSlack;
    }));
  }
  node_.Thaw();
}

TEST_F(SessionTest, FrozenNode_WakesUp_LateLoadReachesNoMemoryInUse) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  LoadCall call = Loading(Find(*session, kBlocks, {}), kBlocks);
  call.segment = segment;
  call.deadline = absl::Milliseconds(50);
  node_.Freeze();
  EXPECT_TRUE(All(session->Load(call).statuses, BlockStatus::kMiss));
  EXPECT_EQ(segment->generation(), 1u);
  std::fill(segment->memory().begin(), segment->memory().end(), kPoison);
  node_.Thaw();
  ASSERT_TRUE(client->Status({}).ok());  // it is awake and answers
  EXPECT_EQ(std::count(segment->memory().begin(), segment->memory().end(), kPoison),
            static_cast<ssize_t>(segment->memory().size()));
  call.deadline = absl::FromChrono(kPatience);  // the fresh memory is registered by the next call
  const Loaded loaded = session->Load(call);
  EXPECT_TRUE(All(loaded.statuses, BlockStatus::kOk)) << loaded.node;
}

TEST_F(SessionTest, KilledNode_MissesAtOnce_AndComesBack) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto segment = *Segment::Create(kBlocks * BlockBytes());
  StoreThrough(*session, segment, 1);
  node_.Kill();
  const Match missed = Find(*session, kBlocks, {});
  EXPECT_TRUE(absl::IsUnavailable(missed.node)) << missed.node;  // and not the deadline
  EXPECT_EQ(missed.matched_blocks, 0u);
  node_.Start();
  Match match;
  EXPECT_TRUE(Eventually([&] { return (match = Find(*session, kBlocks, {})).node.ok(); }))
      << match.node;
  EXPECT_EQ(match.matched_blocks, 0u);  // it forgot
  StoreThrough(*session, segment, 2);   // and the segment works with the new session
}

TEST_F(SessionTest, Forget_FreesARegistration) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  const auto keys = Keys(*session, 1, 0);
  for (int i = 0; i < 40; ++i) {  // twice what a session may register
    const auto segment = *Segment::Create(BlockBytes());
    StoreCall call = Storing(keys);
    call.segment = segment;
    const auto statuses = session->Store(call);
    ASSERT_TRUE(statuses.ok()) << i << " " << statuses.status();
    ASSERT_TRUE(session->Forget(*segment, {}).ok());
  }
}

TEST_F(SessionTest, ManyThreads_ShareASession) {
  const auto client = Connect();
  const auto session = *client->Open(Spec(), {});
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto segment = *Segment::Create(BlockBytes());
      for (uint32_t i = 0; i < 20; ++i) {
        const auto keys = Keys(*session, 1, 1 + t * 100000 + i * 1000);
        Fill(segment->memory(), t * 100 + i);
        const std::vector<std::byte> stored(segment->memory().begin(), segment->memory().end());
        StoreCall store = Storing(keys);
        store.segment = segment;
        ASSERT_TRUE(All(*session->Store(store), BlockStatus::kOk));
        LookupCall lookup;
        lookup.keys = keys;
        const Match match = session->Lookup(lookup);
        if (match.matched_blocks == 0) continue;  // evicted by the others
        LoadCall load = Loading(match, 1);
        load.segment = segment;
        std::fill(segment->memory().begin(), segment->memory().end(), kPoison);
        ASSERT_TRUE(All(session->Load(load).statuses, BlockStatus::kOk));
        ASSERT_EQ(std::memcmp(stored.data(), segment->memory().data(), BlockBytes()), 0);
        ASSERT_TRUE(session->Release({match.lease}, {}).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace fq::client
