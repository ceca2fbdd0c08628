#include "server/rpc/fetch_calls.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "tests/testing/forwarding_node.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

using Code = grpc::StatusCode;
using Change = std::function<void(Options&)>;

constexpr auto kOk = wire::BLOCK_STATUS_OK;
constexpr auto kExists = wire::BLOCK_STATUS_EXISTS;
constexpr auto kMiss = wire::BLOCK_STATUS_MISS;
constexpr auto kFull = wire::BLOCK_STATUS_FULL;
constexpr auto kRefused = wire::BLOCK_STATUS_REFUSED;

using Statuses = std::vector<int>;

// A chain of blocks at one node, `there`, that `here` may fetch, over `between`.
class FetchTest : public testing::Test {
 protected:
  static constexpr size_t kBlocks = 6;

  explicit FetchTest(const Change& change = [](Options&) {})
      : here_([&](Options& o) {
          o.fetch_from = {between_.address(), "unix://" + there_.options().socket};
          change(o);
        }) {}

  void StoreThere(wire::Profile profile) {
    TestClient client(there_);
    client.StoreAndLookup(keys_, pages_, profile);
  }

  wire::FetchRequest Request() const { return client_.FetchOf(keys_, between_.address()); }

  grpc::Status Fetch(const wire::FetchRequest& request) {
    grpc::ClientContext context;
    reply_.Clear();
    return client_.stub().Fetch(&context, request, &reply_);
  }
  grpc::Status Fetch() { return Fetch(Request()); }

  // Why the other node was not asked for everything. Nothing that is wrong with it fails the call.
  Code StoppedBy() {
    const grpc::Status status = Fetch();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return static_cast<Code>(reply_.stopped_code());
  }

  Statuses Got() const { return {reply_.statuses().begin(), reply_.statuses().end()}; }

  StoreStats Here() { return here_.node().tiers().Stats().host; }
  double Counted(const std::string& name) { return here_.node().metrics().Values()[name]; }
  double Stopped(const std::string& reason) {
    return Counted(absl::StrCat("fq_fetches_stopped_total{reason=\"", reason, "\"}"));
  }

  static void AwaitCancel(const grpc::ServerContext& context) {
    while (!context.IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  // Nothing of the chain is here, visible or not.
  void ExpectNothingHere() {
    EXPECT_EQ(Here().slabs, 0u);
    EXPECT_EQ(Here().reserved_slabs, 0u);
    EXPECT_EQ(Here().used_bytes, 0u);
  }

  // What hooks use: they run until `between_` has gone.
  absl::Notification loading_, go_on_;
  std::atomic<int> begun_{0}, cancelled_{0};

  RunningNode there_;
  ForwardingNode between_{there_};
  RunningNode here_;
  TestClient client_{here_};
  const std::string keys_ = TestKeys("a", kBlocks);
  const std::string pages_ = TestPages(there_.codec_set(), kBlocks, 1);
  wire::FetchResponse reply_;
};

TEST_F(FetchTest, EveryProfile_LoadsHereAsThereAfterTheOtherNodeIsGone) {
  std::string keys[4], expected[4];
  const wire::Profile profiles[] = {wire::PROFILE_EXACT, wire::PROFILE_NEAR_LOSSLESS,
                                    wire::PROFILE_COMPACT, wire::PROFILE_UNIVERSAL};
  for (int i = 0; i < 4; ++i) {
    keys[i] = TestKeys(wire::Profile_Name(profiles[i]), kBlocks);
    TestClient client(there_);
    client.StoreAndLookup(keys[i], pages_, profiles[i]);
    expected[i] = client.LoadAll(keys[i]);
    wire::FetchRequest request = Request();
    request.set_node("unix://" + there_.options().socket);
    request.set_keys(keys[i]);
    ASSERT_TRUE(Fetch(request).ok());
    EXPECT_EQ(Got(), Statuses(kBlocks, kOk)) << reply_.stopped();
    EXPECT_EQ(reply_.stopped(), "");
  }
  there_.Stop();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(client_.LoadAll(keys[i]), expected[i]) << profiles[i];
  EXPECT_EQ(Counted("fq_fetched_blocks_total{result=\"ok\"}"), 4 * kBlocks);
  EXPECT_GT(Counted("fq_fetched_bytes_total{transport=\"grpc\"}"), kBlocks * kTestBlockBytes);
  EXPECT_EQ(Counted("fq_requests_total{code=\"OK\",method=\"Fetch\"}"), 4);
}

TEST_F(FetchTest, OnlyWhatIsMissing_IsAskedForAndNobodyWhenNothingIs) {
  StoreThere(wire::PROFILE_EXACT);
  uint32_t asked = 0;
  between_.on_load = [&](grpc::ServerContext&, wire::LoadResponse& reply) {
    asked += static_cast<uint32_t>(reply.statuses_size());
    return grpc::Status::OK;
  };
  const std::string first = keys_.substr(0, 2 * 32);
  client_.StoreAndLookup(first, pages_.substr(0, 2 * kTestBlockBytes), wire::PROFILE_EXACT);
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kExists, kExists, kOk, kOk, kOk, kOk}));
  EXPECT_EQ(asked, 4u);
  between_.Die();
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), Statuses(kBlocks, kExists));
  EXPECT_EQ(client_.LoadAll(keys_), pages_);
}

TEST_F(FetchTest, WhatTheOtherNodeHasNot_IsAMissAndMakesNothingThere) {
  EXPECT_EQ(StoppedBy(), Code::OK);
  EXPECT_EQ(Got(), Statuses(kBlocks, kMiss));
  EXPECT_EQ(there_.node().namespaces().size(), 0u);
  TestClient client(there_);
  client.StoreAndLookup(keys_.substr(0, 2 * 32), pages_.substr(0, 2 * kTestBlockBytes),
                        wire::PROFILE_EXACT);
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kMiss, kMiss, kMiss, kMiss}));
  EXPECT_EQ(reply_.stopped(), "");
}

TEST_F(FetchTest, RefinementGone_ComesAsCompactUnlessTheFloorForbids) {
  StoreThere(wire::PROFILE_NEAR_LOSSLESS);
  EXPECT_TRUE(Eventually([&] { return there_.node().tiers().Stats().host.pinned_slabs == 0; }));
  const uint64_t scope = 1;  // the first space of that node
  for (size_t i = 2; i < kBlocks; ++i) {
    SlabKey key{scope, {}};
    std::memcpy(key.block.data(), &keys_[32 * i], 32);
    ASSERT_TRUE(there_.node().tiers().DropRefinement(key));
  }
  wire::FetchRequest fine = Request();
  fine.set_min_profile(wire::PROFILE_NEAR_LOSSLESS);
  ASSERT_TRUE(Fetch(fine).ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kMiss, kMiss, kMiss, kMiss}));
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kExists, kExists, kOk, kOk, kOk, kOk}));
  wire::LookupResponse found;
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys_), found).ok());
  EXPECT_EQ(found.profiles(1), wire::PROFILE_NEAR_LOSSLESS);
  EXPECT_EQ(found.profiles(2), wire::PROFILE_COMPACT);
}

TEST_F(FetchTest, NodeThatIsNotListed_IsPermissionDeniedAndNeverAsked) {
  ForwardingNode unlisted(there_);
  bool asked = false;
  unlisted.on_session = [&](grpc::ServerContext&, wire::SessionResponse&) {
    asked = true;
    return grpc::Status::OK;
  };
  for (const std::string& node : {unlisted.address(), between_.address() + "/", std::string("a:1"),
                                  std::string("unix:///etc/passwd")}) {
    wire::FetchRequest request = Request();
    request.set_node(node);
    EXPECT_EQ(Fetch(request).error_code(), Code::PERMISSION_DENIED) << node;
  }
  EXPECT_FALSE(asked);
  ExpectNothingHere();
}

TEST_F(FetchTest, WrongFields_AreNamed) {
  for (const auto& [change, code, part] :
       std::vector<std::tuple<std::function<void(wire::FetchRequest&)>, Code, std::string>>{
           {[](auto& r) { r.set_session_id("x"); }, Code::INVALID_ARGUMENT, "session_id"},
           {[](auto& r) { r.set_session_id(std::string(16, 'x')); }, Code::UNAUTHENTICATED, ""},
           {[](auto& r) { r.clear_node(); }, Code::INVALID_ARGUMENT, "node has 0"},
           {[](auto& r) { r.set_node(std::string(513, 'n')); }, Code::INVALID_ARGUMENT, "513"},
           {[](auto& r) { r.clear_keys(); }, Code::INVALID_ARGUMENT, "keys has 0"},
           {[](auto& r) { r.set_keys("x"); }, Code::INVALID_ARGUMENT, "keys has 1"},
           {[](auto& r) { r.set_keys(std::string(32 * 1025, 'k')); }, Code::RESOURCE_EXHAUSTED,
            "1025"},
           {[](auto& r) { r.set_min_profile(wire::PROFILE_UNIVERSAL); }, Code::INVALID_ARGUMENT,
            "min_profile"}}) {
    wire::FetchRequest request = Request();
    change(request);
    const grpc::Status status = Fetch(request);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_NE(status.error_message().find(part), std::string::npos) << status.error_message();
  }
}

TEST_F(FetchTest, AnotherNamespaceOfThatNameThere_IsFailedPrecondition) {
  wire::SessionRequest other = TestSessionRequest(there_);
  other.mutable_namespace_descriptor()->set_rope("other");
  TestClient first(there_, other);
  EXPECT_EQ(StoppedBy(), Code::FAILED_PRECONDITION);
  EXPECT_NE(reply_.stopped().find("rope"), std::string::npos) << reply_.stopped();
  EXPECT_EQ(Stopped("mismatch"), 1);
}

TEST_F(FetchTest, NodeThatAnswersForAnotherTenantOrNamespace_IsNotBelieved) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_session = [](grpc::ServerContext&, wire::SessionResponse& reply) {
    reply.set_tenant("other");  // as one that does not know the field `tenant` does
    return grpc::Status::OK;
  };
  EXPECT_EQ(StoppedBy(), Code::PERMISSION_DENIED);
  between_.on_session = [](grpc::ServerContext&, wire::SessionResponse& reply) {
    reply.set_namespace_fingerprint(std::string(32, 'f'));
    return grpc::Status::OK;
  };
  EXPECT_EQ(StoppedBy(), Code::FAILED_PRECONDITION);
  ExpectNothingHere();
}

TEST_F(FetchTest, WhatTheOtherNodeSaysOfItself_IsNotTheCallersSession) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_lookup = [](grpc::ServerContext&, wire::LookupResponse&) {
    return grpc::Status(Code::UNAUTHENTICATED, "no such session");
  };
  EXPECT_EQ(StoppedBy(), Code::PERMISSION_DENIED);
  between_.on_lookup = [](grpc::ServerContext&, wire::LookupResponse&) {
    return grpc::Status(Code::INTERNAL, "caf\xC3\xA9 " + std::string(1000, 'x'));
  };
  EXPECT_EQ(StoppedBy(), Code::UNAVAILABLE);
  EXPECT_LT(reply_.stopped().size(), 300u);
}

class TenantTest : public FetchTest {
 protected:
  TenantTest() : FetchTest([](Options& o) { o.tenant = "team-a"; }) {}
};

TEST_F(TenantTest, OfAnotherNodesTenant_NothingIsFetched) {
  StoreThere(wire::PROFILE_EXACT);  // as "default"
  EXPECT_EQ(StoppedBy(), Code::PERMISSION_DENIED);
  EXPECT_NE(reply_.stopped().find("trusted-node"), std::string::npos);
  ExpectNothingHere();
  EXPECT_EQ(there_.node().namespaces().List("team-a", "")->size(), 0u);
}

TEST_F(FetchTest, DamagedExtents_AreRefusedOneByOneAndCounted) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    const size_t extent = reply.sizes(0);
    std::string& payload = *reply.mutable_payload();
    payload[1 * extent + 1000] ^= 1;  // the digest tells
    payload[3 * extent + 1000] ^= 1;  // with a digest that fits: the page's checksum tells
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits(&payload[3 * extent], extent));
    std::memcpy(&(*reply.mutable_xxh3_128())[3 * 16], digest.digest, 16);
    (*reply.mutable_xxh3_128())[5 * 16] ^= 1;  // the bytes are right
    return grpc::Status::OK;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kRefused, kOk, kRefused, kOk, kRefused}));
  EXPECT_EQ(Counted("fq_fetched_blocks_total{result=\"refused\"}"), 3);
  EXPECT_EQ(client_.LoadAll(keys_), pages_.substr(0, kTestBlockBytes));
  EXPECT_EQ(Here().slabs, 3u);
  EXPECT_EQ(Here().reserved_slabs, 0u);
}

TEST_F(FetchTest, WholeBlocksUnderEachOthersKeys_AreRefused) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    const size_t extent = reply.sizes(2);
    std::string& payload = *reply.mutable_payload();
    std::swap_ranges(&payload[2 * extent], &payload[3 * extent], &payload[3 * extent]);
    std::string& digests = *reply.mutable_xxh3_128();
    std::swap_ranges(&digests[2 * 16], &digests[3 * 16], &digests[3 * 16]);
    return grpc::Status::OK;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kRefused, kRefused, kOk, kOk}));
}

TEST_F(FetchTest, RepliesThatMakeNoSense_AreDataLossAndNothingIsPublished) {
  StoreThere(wire::PROFILE_NEAR_LOSSLESS);
  const std::vector<std::function<void(wire::LoadResponse&)>> changes = {
      [](auto& r) { r.mutable_payload()->resize(r.payload().size() - 1); },
      [](auto& r) { r.mutable_payload()->append("x"); },
      [](auto& r) { r.clear_payload(); },
      [](auto& r) { r.set_sizes(0, UINT64_MAX); },
      [](auto& r) { r.set_refinement_sizes(5, UINT64_MAX - r.sizes(5)); },
      [](auto& r) { r.set_sizes(1, 0); },
      [](auto& r) { r.set_statuses(1, wire::BLOCK_STATUS_MISS); },
      [](auto& r) { r.add_statuses(wire::BLOCK_STATUS_OK); },
      [](auto& r) { r.mutable_sizes()->RemoveLast(); },
      [](auto& r) { r.clear_refinement_sizes(); },
      [](auto& r) { r.mutable_xxh3_128()->resize(r.xxh3_128().size() - 16); },
      [](auto& r) { r.mutable_xxh3_128()->append(16, 'x'); },
  };
  size_t turn = 0;
  between_.on_load = [&](grpc::ServerContext&, wire::LoadResponse& reply) {
    changes[turn](reply);
    return grpc::Status::OK;
  };
  for (; turn < changes.size(); ++turn) {
    EXPECT_EQ(StoppedBy(), Code::DATA_LOSS) << turn;
  }
  EXPECT_EQ(Stopped("malformed"), changes.size());
  ExpectNothingHere();
}

TEST_F(FetchTest, MatchesThatMakeNoSense_AreDataLoss) {
  StoreThere(wire::PROFILE_EXACT);
  const std::vector<std::function<void(wire::LookupResponse&)>> changes = {
      [](auto& r) { r.set_matched_blocks(kBlocks + 1); },
      [](auto& r) { r.set_matched_blocks(UINT32_MAX); },
      [](auto& r) { r.clear_stored_bytes(); },
      [](auto& r) { r.set_lease_id("x"); },
  };
  size_t turn = 0;
  between_.on_lookup = [&](grpc::ServerContext&, wire::LookupResponse& reply) {
    changes[turn](reply);
    return grpc::Status::OK;
  };
  for (; turn < changes.size(); ++turn) {
    EXPECT_EQ(StoppedBy(), Code::DATA_LOSS) << turn;
  }
  ExpectNothingHere();
}

TEST_F(FetchTest, NodeThatIsNotThere_IsUnavailable) {
  between_.Die();
  EXPECT_EQ(StoppedBy(), Code::UNAVAILABLE);
  EXPECT_EQ(Stopped("unreachable"), 1);
}

TEST_F(FetchTest, DiesInMidTransfer_NothingOfThatPieceIsPublished) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [&](grpc::ServerContext& context, wire::LoadResponse&) {
    loading_.Notify();
    AwaitCancel(context);
    return grpc::Status::OK;
  };
  auto fetch = std::async(std::launch::async, [&] { return Fetch(); });
  loading_.WaitForNotification();
  between_.Die();
  EXPECT_TRUE(fetch.get().ok());
  EXPECT_NE(reply_.stopped_code(), 0u);  // that the call or that the connection ended
  EXPECT_EQ(Got(), Statuses(kBlocks, kMiss));
  ExpectNothingHere();
}

TEST_F(FetchTest, DeadlineOrCancelOfTheCaller_EndsTheStepAtTheOtherNode) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [&](grpc::ServerContext& context, wire::LoadResponse&) {
    ++begun_;
    AwaitCancel(context);
    ++cancelled_;
    return grpc::Status::OK;
  };
  EXPECT_TRUE(Eventually([&] {  // a slow machine gives a call up before it has arrived
    grpc::ClientContext timed;
    timed.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
    client_.stub().Fetch(&timed, Request(), &reply_);  // in time, or just not: not tested
    return Stopped("deadline") > 0;
  }));
  EXPECT_TRUE(Eventually([&] { return Counted("fq_running_calls") == 0 && cancelled_ == begun_; }));
  const int begun = begun_;  // 0 when the deadline came first
  grpc::ClientContext given_up;
  std::thread canceller([&] {
    EXPECT_TRUE(Eventually([&] { return begun_ > begun; }));
    given_up.TryCancel();
  });
  EXPECT_EQ(client_.stub().Fetch(&given_up, Request(), &reply_).error_code(), Code::CANCELLED);
  canceller.join();
  EXPECT_TRUE(Eventually([&] { return cancelled_ > begun && cancelled_ == begun_; }));
  EXPECT_TRUE(Eventually([&] { return Counted("fq_running_calls") == 0; }));
  ExpectNothingHere();
}

TEST_F(FetchTest, Draining_TakesNoFetch) {
  here_.server().BeginDrain();
  EXPECT_EQ(Fetch().error_code(), Code::UNAVAILABLE);
}

TEST_F(FetchTest, EndOfTheNode_EndsAFetchUnderWay) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [&](grpc::ServerContext& context, wire::LoadResponse&) {
    loading_.Notify();
    AwaitCancel(context);
    return grpc::Status::OK;
  };
  auto fetch = std::async(std::launch::async, [&] { return Fetch(); });
  loading_.WaitForNotification();
  here_.Stop();
  fetch.get();  // it ends: that is what is tested
}

class PiecesTest : public FetchTest {
 protected:
  static constexpr uint64_t kTwoBlocks = 2 * kTestBlockBytes + 8192;
  PiecesTest() : FetchTest([](Options& o) { o.max_inline_bytes = kTwoBlocks; }) {}
};

TEST_F(PiecesTest, EachReply_StaysBelowTheSmallerLimitOfTheTwo) {
  StoreThere(wire::PROFILE_EXACT);
  std::vector<size_t> bytes;
  between_.on_load = [&](grpc::ServerContext&, wire::LoadResponse& reply) {
    bytes.push_back(reply.payload().size());
    return grpc::Status::OK;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(bytes.size(), kBlocks / 2);
  for (size_t one : bytes) EXPECT_LE(one, kTwoBlocks);
}

TEST_F(PiecesTest, FailureAfterAPiece_KeepsItAndSaysWhyTheRestWasNotAskedFor) {
  StoreThere(wire::PROFILE_EXACT);
  int loads = 0;
  between_.on_load = [&](grpc::ServerContext&, wire::LoadResponse&) {
    return ++loads == 2 ? grpc::Status(Code::UNAVAILABLE, "gone") : grpc::Status::OK;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kMiss, kMiss, kMiss, kMiss}));
  EXPECT_NE(reply_.stopped().find("gone"), std::string::npos) << reply_.stopped();
  EXPECT_EQ(client_.LoadAll(keys_), pages_.substr(0, 2 * kTestBlockBytes));
}

TEST_F(PiecesTest, BlockLargerThanAMessage_IsResourceExhausted) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_session = [](grpc::ServerContext&, wire::SessionResponse& reply) {
    reply.set_max_inline_bytes(kTestBlockBytes - 1);
    return grpc::Status::OK;
  };
  EXPECT_EQ(StoppedBy(), Code::RESOURCE_EXHAUSTED);
  EXPECT_NE(reply_.stopped().find("max-inline-bytes"), std::string::npos);
}

TEST_F(PiecesTest, MoreBlocksThanTheOtherNodeTakes_AreFetchedAsFarAsItTakes) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_session = [](grpc::ServerContext&, wire::SessionResponse& reply) {
    reply.set_max_blocks_per_call(4);
    return grpc::Status::OK;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kOk, kOk, kMiss, kMiss}));
  EXPECT_NE(reply_.stopped().find("4 blocks a call"), std::string::npos) << reply_.stopped();
}

class NoRoomTest : public FetchTest {
 protected:
  NoRoomTest() : FetchTest([](Options& o) { o.host_bytes = 1 << 20; }) {}
};

TEST_F(NoRoomTest, EverythingElseLeased_IsFullFromThereOn) {
  StoreThere(wire::PROFILE_EXACT);
  const std::string leased = TestKeys("leased", 12);
  const std::string pages = TestPages(here_.codec_set(), 12, 7);
  client_.StoreAndLookup(leased, pages, wire::PROFILE_EXACT);
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(reply_.statuses(kBlocks - 1), kFull);
  EXPECT_NE(reply_.stopped().find("no room"), std::string::npos) << reply_.stopped();
  const Statuses got = Got();
  EXPECT_TRUE(std::is_sorted(got.begin(), got.end()));  // OK until there is no room, then FULL
  EXPECT_EQ(client_.LoadAll(leased), pages);
}

// The one fetch that may run waits; another may wait behind it.
class BusyTest : public FetchTest {
 protected:
  BusyTest()
      : FetchTest([](Options& o) {
          o.max_fetches = 1;
          o.workers = 1;
        }) {
    between_.on_load = [this](grpc::ServerContext&, wire::LoadResponse&) {
      if (!loading_.HasBeenNotified()) loading_.Notify();
      go_on_.WaitForNotification();
      return grpc::Status::OK;
    };
  }

  grpc::Status FetchBeside(wire::FetchResponse& reply, grpc::ClientContext& context) {
    return client_.stub().Fetch(&context, Request(), &reply);
  }
};

TEST_F(BusyTest, FetchThatWaits_HoldsUpNoStoreAndNoLoad) {
  StoreThere(wire::PROFILE_EXACT);
  auto fetch = std::async(std::launch::async, [&] { return Fetch(); });
  loading_.WaitForNotification();
  const std::string keys = TestKeys("b", 2);
  const std::string pages = TestPages(here_.codec_set(), 2, 5);
  client_.StoreAndLookup(keys, pages, wire::PROFILE_EXACT);
  EXPECT_EQ(client_.LoadAll(keys), pages);
  go_on_.Notify();
  EXPECT_TRUE(fetch.get().ok());
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
}

TEST_F(BusyTest, OneMoreThanMayWait_IsResourceExhaustedWithAHint) {
  StoreThere(wire::PROFILE_EXACT);
  wire::FetchResponse first, second, third;
  grpc::ClientContext contexts[3];
  auto running = std::async(std::launch::async, [&] { return FetchBeside(first, contexts[0]); });
  loading_.WaitForNotification();
  auto waiting = std::async(std::launch::async, [&] { return FetchBeside(second, contexts[1]); });
  EXPECT_TRUE(Eventually([&] { return here_.node().fetchers().queued() == 1; }));
  const grpc::Status refused = FetchBeside(third, contexts[2]);
  EXPECT_EQ(refused.error_code(), Code::RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error_message().find("max-fetches"), std::string::npos);
  EXPECT_EQ(contexts[2].GetServerTrailingMetadata().count("retry-after-ms"), 1u);
  go_on_.Notify();
  EXPECT_TRUE(running.get().ok());
  EXPECT_TRUE(waiting.get().ok());
  EXPECT_EQ(second.statuses(0), kExists);
}

}  // namespace
}  // namespace fq
