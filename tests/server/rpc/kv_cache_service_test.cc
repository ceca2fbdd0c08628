#include "server/rpc/kv_cache_service.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "server/to_bytes.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

using Code = grpc::StatusCode;

// A sealed memory file that the test and the node both map.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : fd_(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    EXPECT_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes)), 0);
    EXPECT_EQ(fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    segment_ = *Segment::Map(fd_, bytes);
  }
  const OwnedFd& fd() const { return fd_; }
  size_t size() const { return segment_->memory().size(); }
  void Write(size_t offset, const std::string& bytes) {
    std::memcpy(segment_->memory().data() + offset, bytes.data(), bytes.size());
  }
  std::string Read(size_t offset, size_t bytes) const {
    return std::string(reinterpret_cast<const char*>(segment_->memory().data()) + offset, bytes);
  }

 private:
  OwnedFd fd_;
  std::shared_ptr<const Segment> segment_;
};

class KvCacheServiceTest : public testing::Test {
 protected:
  // As the segment socket would; that has a test of its own.
  uint32_t Register(const SharedMemory& memory) {
    const auto session = *node_.node().sessions().Find(ToRandomId(client_.id()));
    return *session->segments.Register(memory.fd(), memory.size());
  }
  StoreStats Stats() { return node_.node().tiers().Stats().host; }

  RunningNode node_{[](Options& o) { o.max_blocks_per_call = 16; }};
  TestClient client_{node_};
};

TEST_F(KvCacheServiceTest, ExactInline_ComesBackBitForBit) {
  const std::string pages = TestPages(node_.codec_set(), 3, 1), keys = TestKeys("a", 3);
  const auto found = client_.StoreAndLookup(keys, pages, wire::PROFILE_EXACT);
  EXPECT_EQ(found.matched_blocks(), 3u);
  EXPECT_EQ(found.usable_blocks(), 3u);
  EXPECT_EQ(found.profiles(0), wire::PROFILE_EXACT);
  EXPECT_GT(found.stored_bytes(0), kTestBlockBytes);
  wire::LoadResponse loaded;
  ASSERT_TRUE(client_.Load(client_.LoadOf(found.lease_id(), 3), loaded).ok());
  EXPECT_EQ(loaded.payload(), pages);
  EXPECT_EQ(loaded.sizes(2), kTestBlockBytes);
}

TEST_F(KvCacheServiceTest, LossyProfiles_ComeBackWithinTheirError) {
  for (const auto& [profile, most] :
       std::vector<std::pair<wire::Profile, double>>{{wire::PROFILE_UNIVERSAL, 0.15},
                                                     {wire::PROFILE_NEAR_LOSSLESS, 0.3},
                                                     {wire::PROFILE_COMPACT, 0.9}}) {
    const std::string pages = TestPages(node_.codec_set(), 3, 1);
    const auto found =
        client_.StoreAndLookup(TestKeys(wire::Profile_Name(profile), 3), pages, profile);
    wire::LoadResponse loaded;
    ASSERT_TRUE(client_.Load(client_.LoadOf(found.lease_id(), 3), loaded).ok());
    EXPECT_LT(RelativeError(pages, loaded.payload()), most) << wire::Profile_Name(profile);
  }
}

TEST_F(KvCacheServiceTest, ThroughASegment_OnlyTheBlocksPlacesAreWritten) {
  SharedMemory memory(6 * kTestBlockBytes);
  const uint32_t segment = Register(memory);
  const std::string pages = TestPages(node_.codec_set(), 2, 1), keys = TestKeys("a", 2);
  memory.Write(0, pages);
  wire::StoreRequest store = client_.StoreOf(keys, "", wire::PROFILE_EXACT);
  store.mutable_pages()->set_segment_id(segment);
  wire::StoreResponse stored;
  ASSERT_TRUE(client_.Store(store, stored).ok());
  memory.Write(2 * kTestBlockBytes, std::string(4 * kTestBlockBytes, '\xA5'));
  wire::LookupResponse found;
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys), found).ok());
  wire::LoadRequest load = client_.LoadOf(found.lease_id(), 2);
  *load.mutable_pages() = TestPlaces(2, 3);
  load.mutable_pages()->set_segment_id(segment);
  wire::LoadResponse loaded;
  ASSERT_TRUE(client_.Load(load, loaded).ok());
  EXPECT_TRUE(loaded.payload().empty());
  EXPECT_EQ(memory.Read(3 * kTestBlockBytes, 2 * kTestBlockBytes), pages);
  for (size_t block : {2, 5}) {
    EXPECT_EQ(memory.Read(block * kTestBlockBytes, kTestBlockBytes),
              std::string(kTestBlockBytes, '\xA5'));
  }
}

TEST_F(KvCacheServiceTest, SmallChunksAndTransposedRows_MeanTheSameValues) {
  const std::string dense = TestPages(node_.codec_set(), 1, 1), keys = TestKeys("a", 1);
  client_.StoreAndLookup(keys, dense, wire::PROFILE_EXACT);
  wire::LookupResponse found;
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys), found).ok());
  SharedMemory memory(16 * kTestBlockBytes);
  wire::LoadRequest load = client_.LoadOf(found.lease_id(), 1);
  wire::Pages& pages = *load.mutable_pages();
  pages.set_segment_id(Register(memory));
  wire::PageLayout& l = *pages.mutable_layout();
  l.set_tokens_per_chunk(
      16);  // 4 chunks, each [layer][head][K: channel][token], V: [token][channel]]
  l.set_k_token_stride(2);
  l.set_k_channel_stride(32);
  l.set_v_offset(2048);
  l.set_v_token_stride(128);
  l.set_v_channel_stride(2);
  l.set_head_stride(4096);
  l.set_layer_stride(8192);
  const uint64_t chunk_offsets[] = {65536, 16384, 131072, 0};
  wire::BlockPlace& place = *pages.add_places();
  for (uint64_t offset : chunk_offsets) place.add_chunk_offsets(offset);
  wire::LoadResponse loaded;
  const grpc::Status status = client_.Load(load, loaded);
  ASSERT_TRUE(status.ok()) << status.error_message();
  for (size_t token = 0; token < 64; ++token) {
    const size_t chunk = chunk_offsets[token / 16] + 8192 + 4096;  // layer 1, head 1
    const size_t k_page = 3 * 2 * 64 * 128, in_chunk = token % 16;
    EXPECT_EQ(memory.Read(chunk + 2048 + in_chunk * 128, 128),
              dense.substr(k_page + 64 * 128 + token * 128, 128));
    EXPECT_EQ(memory.Read(chunk + 5 * 32 + in_chunk * 2, 2),
              dense.substr(k_page + token * 128 + 5 * 2, 2));
  }
}

TEST_F(KvCacheServiceTest, CompactChain_FollowsTheTailRule) {
  const std::string pages = TestPages(node_.codec_set(), 6, 1), keys = TestKeys("a", 6);
  auto found = client_.StoreAndLookup(keys, pages, wire::PROFILE_COMPACT);
  EXPECT_EQ(found.matched_blocks(), 6u);
  EXPECT_EQ(found.usable_blocks(), 6u);
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys.substr(0, 5 * 32)), found).ok());
  EXPECT_EQ(found.matched_blocks(), 5u);
  EXPECT_EQ(found.usable_blocks(), 3u);
  wire::LookupRequest lookup = client_.LookupOf(keys);
  lookup.set_min_profile(wire::PROFILE_NEAR_LOSSLESS);
  ASSERT_TRUE(client_.Lookup(lookup, found).ok());
  EXPECT_EQ(found.matched_blocks(), 0u);
  EXPECT_TRUE(found.lease_id().empty());
}

TEST_F(KvCacheServiceTest, Floor_IsHeldAtTheLoad) {
  const auto found = client_.StoreAndLookup(TestKeys("a", 3), TestPages(node_.codec_set(), 3, 1),
                                            wire::PROFILE_COMPACT);
  wire::LoadRequest load = client_.LoadOf(found.lease_id(), 3);
  load.set_min_profile(wire::PROFILE_NEAR_LOSSLESS);
  wire::LoadResponse loaded;
  ASSERT_TRUE(client_.Load(load, loaded).ok());
  EXPECT_EQ(loaded.statuses(0), wire::BLOCK_STATUS_BELOW_FLOOR);
  EXPECT_EQ(loaded.statuses(2), wire::BLOCK_STATUS_OK);
}

TEST_F(KvCacheServiceTest, NoLease_OnlyAsks) {
  client_.StoreAndLookup(TestKeys("a", 1), TestPages(node_.codec_set(), 1, 1), wire::PROFILE_EXACT);
  wire::LookupRequest lookup = client_.LookupOf(TestKeys("a", 1));
  lookup.set_no_lease(true);
  wire::LookupResponse found;
  ASSERT_TRUE(client_.Lookup(lookup, found).ok());
  EXPECT_EQ(found.matched_blocks(), 1u);
  EXPECT_TRUE(found.lease_id().empty());
}

TEST_F(KvCacheServiceTest, Lease_ExpiresOnTheNodesClock) {
  const auto found = client_.StoreAndLookup(TestKeys("a", 1), TestPages(node_.codec_set(), 1, 1),
                                            wire::PROFILE_EXACT);
  wire::LoadResponse loaded;
  node_.clock().Advance(Milliseconds(node_.options().lease_ms - 1));
  EXPECT_TRUE(client_.Load(client_.LoadOf(found.lease_id(), 1), loaded).ok());
  node_.clock().Advance(Milliseconds(node_.options().lease_ms));
  const grpc::Status late = client_.Load(client_.LoadOf(found.lease_id(), 1), loaded);
  EXPECT_EQ(late.error_code(), Code::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] { return Stats().pinned_slabs == 0; }));
}

TEST_F(KvCacheServiceTest, LeaseOfAnotherSession_IsNotFound) {
  const auto found = client_.StoreAndLookup(TestKeys("a", 1), TestPages(node_.codec_set(), 1, 1),
                                            wire::PROFILE_EXACT);
  TestClient other(node_);
  wire::LoadResponse loaded;
  EXPECT_EQ(other.Load(other.LoadOf(found.lease_id(), 1), loaded).error_code(), Code::NOT_FOUND);
  wire::LoadRequest never = client_.LoadOf(std::string(16, 'l'), 1);
  EXPECT_EQ(client_.Load(never, loaded).error_code(), Code::NOT_FOUND);
}

TEST_F(KvCacheServiceTest, TooManyLeases_AreRefused) {
  RunningNode node([](Options& o) { o.max_leases_per_session = 1; });
  TestClient client(node);
  client.StoreAndLookup(TestKeys("a", 1), TestPages(node.codec_set(), 1, 1), wire::PROFILE_EXACT);
  wire::LookupResponse found;
  EXPECT_EQ(client.Lookup(client.LookupOf(TestKeys("a", 1)), found).error_code(),
            Code::RESOURCE_EXHAUSTED);
}

TEST_F(KvCacheServiceTest, Release_CountsWhatItKnew) {
  const auto found = client_.StoreAndLookup(TestKeys("a", 1), TestPages(node_.codec_set(), 1, 1),
                                            wire::PROFILE_EXACT);
  wire::ReleaseRequest request;
  request.set_session_id(client_.id());
  request.add_lease_ids(found.lease_id());
  request.add_lease_ids(found.lease_id());
  request.add_lease_ids(std::string(16, 'l'));
  grpc::ClientContext context;
  wire::ReleaseResponse reply;
  ASSERT_TRUE(client_.stub().Release(&context, request, &reply).ok());
  EXPECT_EQ(reply.released(), 1u);
  EXPECT_EQ(reply.unknown(), 2u);
  EXPECT_EQ(Stats().pinned_slabs, 0u);
}

TEST_F(KvCacheServiceTest, SegmentEndsWithItsSession) {
  std::shared_ptr<Session> session = *node_.node().sessions().Find(ToRandomId(client_.id()));
  SharedMemory memory(4096);
  Register(memory);
  client_.End();
  EXPECT_TRUE(Eventually([&] { return session->segments.size() == 0; }));
}

TEST_F(KvCacheServiceTest, Attend_AnswersForEveryQueryHead) {
  const auto found = client_.StoreAndLookup(TestKeys("a", 3), TestPages(node_.codec_set(), 3, 1),
                                            wire::PROFILE_COMPACT);
  wire::AttendRequest request;
  request.set_session_id(client_.id());
  request.set_lease_id(found.lease_id());
  request.set_layer(1);
  request.set_block_count(3);
  request.set_q_heads_per_kv_head(2);
  request.set_scale(0.125f);
  request.set_q(std::string(kTestHeads * 2 * kTestHeadSize * 4, '\0'));
  grpc::ClientContext context;
  wire::AttendResponse reply;
  const grpc::Status status = client_.stub().Attend(&context, request, &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.out().size(), request.q().size());
  ASSERT_EQ(reply.lse().size(), kTestHeads * 2 * 4u);
  float lse = 0;  // q = 0: the logarithm of the number of tokens
  std::memcpy(&lse, reply.lse().data(), sizeof(lse));
  EXPECT_NEAR(lse, std::log(3 * 64.0), 1e-4);
}

struct BadCall {
  std::string name, part;
  Code code;
  std::function<grpc::Status(TestClient&, const std::string& lease)> call;
};

grpc::Status StoreChanged(TestClient& client,
                          const std::function<void(wire::StoreRequest&)>& change) {
  wire::StoreRequest request =
      client.StoreOf(TestKeys("b", 1), std::string(kTestBlockBytes, 'p'), wire::PROFILE_EXACT);
  change(request);
  wire::StoreResponse reply;
  return client.Store(request, reply);
}

grpc::Status LoadChanged(TestClient& client, const std::string& lease,
                         const std::function<void(wire::LoadRequest&)>& change) {
  wire::LoadRequest request = client.LoadOf(lease, 1);
  change(request);
  wire::LoadResponse reply;
  return client.Load(request, reply);
}

// What only the running node can tell; single fields are in validate_*_test.
const BadCall kBadCalls[] = {
    {"session too short", "session_id has 15", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       return StoreChanged(c, [](auto& r) { r.set_session_id(std::string(15, 's')); });
     }},
    {"session unknown", "session_id", Code::UNAUTHENTICATED,
     [](TestClient& c, const std::string&) {
       return StoreChanged(c, [](auto& r) { r.set_session_id(std::string(16, 's')); });
     }},
    {"segment unknown", "pages.segment_id = 7", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       return StoreChanged(c, [](auto& r) { r.mutable_pages()->set_segment_id(7); });
     }},
    {"chunk outside the payload", "chunk_offsets[0] = 2", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       return StoreChanged(
           c, [](auto& r) { r.mutable_pages()->mutable_places(0)->set_chunk_offsets(0, 2); });
     }},
    {"profile unknown", "profile = 99", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       return StoreChanged(c, [](auto& r) { r.set_profile(static_cast<wire::Profile>(99)); });
     }},
    {"too many blocks", "17 blocks", Code::RESOURCE_EXHAUSTED,
     [](TestClient& c, const std::string&) {
       return StoreChanged(c, [](auto& r) { r.set_keys(TestKeys("b", 17)); });
     }},
    {"lease too long", "lease_id has 17", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       return LoadChanged(c, std::string(17, 'l'), [](auto&) {});
     }},
    {"lease never issued", "lease_id", Code::NOT_FOUND,
     [](TestClient& c, const std::string&) {
       return LoadChanged(c, std::string(16, 'l'), [](auto&) {});
     }},
    {"blocks past the lease", "first_block = 0, block_count = 2", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string& lease) {
       return LoadChanged(c, lease, [](auto& r) { r.set_block_count(2); });
     }},
    {"load into an unknown segment", "pages.segment_id = 7", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string& lease) {
       return LoadChanged(c, lease, [](auto& r) {
         *r.mutable_pages() = TestPlaces(1, 0);
         r.mutable_pages()->set_segment_id(7);
       });
     }},
    {"attend with a bad scale", "scale = 0", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string& lease) {
       wire::AttendRequest request;
       request.set_session_id(c.id());
       request.set_lease_id(lease);
       request.set_block_count(1);
       request.set_q_heads_per_kv_head(1);
       grpc::ClientContext context;
       wire::AttendResponse reply;
       return c.stub().Attend(&context, request, &reply);
     }},
    {"release of half an id", "lease_ids[0] has 8", Code::INVALID_ARGUMENT,
     [](TestClient& c, const std::string&) {
       wire::ReleaseRequest request;
       request.set_session_id(c.id());
       request.add_lease_ids(std::string(8, 'l'));
       grpc::ClientContext context;
       wire::ReleaseResponse reply;
       return c.stub().Release(&context, request, &reply);
     }},
};

TEST_F(KvCacheServiceTest, BadCalls_AreRefusedAndChangeNothing) {
  const std::string pages = TestPages(node_.codec_set(), 1, 1);
  const auto found = client_.StoreAndLookup(TestKeys("a", 1), pages, wire::PROFILE_EXACT);
  const StoreStats before = Stats();
  for (const BadCall& bad : kBadCalls) {
    const grpc::Status status = bad.call(client_, found.lease_id());
    EXPECT_EQ(status.error_code(), bad.code) << bad.name << ": " << status.error_message();
    EXPECT_NE(status.error_message().find(bad.part), std::string::npos) << status.error_message();
  }
  const StoreStats after = Stats();
  EXPECT_EQ(after.slabs, before.slabs);
  EXPECT_EQ(after.used_bytes, before.used_bytes);
  EXPECT_EQ(after.reserved_slabs, 0u);
  EXPECT_TRUE(node_.node().tiers().CheckInvariants().ok());
  wire::LoadResponse loaded;
  ASSERT_TRUE(client_.Load(client_.LoadOf(found.lease_id(), 1), loaded).ok());
  EXPECT_EQ(loaded.payload(), pages);
}

// As a node that fetches for a tenant has: its session is its own, the blocks are the tenant's.
TEST_F(KvCacheServiceTest, SessionForAnotherTenant_ReadsItsBlocksAndDoesNothingElse) {
  const wire::SessionRequest request = TestSessionRequest(node_);
  const Descriptor descriptor = (*node_.node().namespaces().List("default", ""))[0].descriptor;
  const auto space = *node_.node().namespaces().Open("team", request.namespace_name(), descriptor,
                                                     {0, kTestLayers, 0, kTestHeads});
  const auto session = *node_.node().sessions().Open(space, "default");
  const std::string pages = TestPages(node_.codec_set(), 2, 1), keys = TestKeys("a", 2);
  wire::StoreRequest store = client_.StoreOf(keys, pages, wire::PROFILE_EXACT);
  store.set_session_id(ToBytes(session->id));
  wire::StoreResponse stored;
  EXPECT_EQ(client_.Store(store, stored).error_code(), Code::PERMISSION_DENIED);
  store.set_peer_sequence(1);
  EXPECT_EQ(client_.Store(store, stored).error_code(), Code::PERMISSION_DENIED);
  wire::LookupRequest lookup = client_.LookupOf(keys);
  lookup.set_session_id(ToBytes(session->id));
  wire::LookupResponse found;
  client_.StoreAndLookup(keys, pages, wire::PROFILE_EXACT);  // of tenant "default"
  ASSERT_TRUE(client_.Lookup(lookup, found).ok());
  EXPECT_EQ(found.matched_blocks(), 0u);
}

}  // namespace
}  // namespace fq
