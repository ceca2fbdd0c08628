// A whole node in this process, on a Unix socket in a folder of its own, with a clock that tests
// turn; and a client that speaks the wire. For tests; one thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "flashquant/v1/admin.grpc.pb.h"
#include "flashquant/v1/kv_cache.grpc.pb.h"
#include "server/log.h"
#include "server/options.h"
#include "server/server.h"
#include "tests/testing/eventually.h"

namespace fq {

// A folder that vanishes with its owner. Short, for sockets.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Passes only when told to. Thread-safe.
class FakeClock {
 public:
  MonotonicTime Now() const { return MonotonicTime(Milliseconds(now_ms_.load())); }
  void Advance(Milliseconds by) { now_ms_ += by.count(); }

 private:
  std::atomic<int64_t> now_ms_{1'000'000};
};

// Options for tests: small, no metrics port, socket in `folder`.
Options TestOptions(const TempFolder& folder);

class RunningNode {
 public:
  // Starts with TestOptions changed by `change`.
  explicit RunningNode(
      const std::function<void(Options&)>& change = [](Options&) {},
      std::unique_ptr<Device> device = nullptr, std::unique_ptr<PeerTransport> peers = nullptr);
  ~RunningNode();

  Server& server() { return *server_; }
  Node& node() { return server_->node(); }
  FakeClock& clock() { return clock_; }
  const CodecSet& codec_set() const { return *codec_set_; }  // 2 layers, 2 heads of 64
  const Options& options() const { return options_; }
  std::shared_ptr<grpc::Channel> Connect() const;
  void Stop() { server_.reset(); }

 private:
  TempFolder folder_;
  FakeClock clock_;
  Options options_;
  std::unique_ptr<Log> log_;
  std::shared_ptr<const CodecSet> codec_set_;
  std::unique_ptr<Server> server_;
};

// What tests store: `layers` x `heads` pages of 64 x 64 BF16 per block, dense.
inline constexpr int kTestLayers = 2, kTestHeads = 2, kTestHeadSize = 64;
inline constexpr size_t kTestBlockBytes = 2 * kTestLayers * kTestHeads * 64 * kTestHeadSize * 2;

flashquant::v1::SessionRequest TestSessionRequest(const RunningNode& node);

// Keys of a chain of that name, 32 bytes each, joined.
std::string TestKeys(const std::string& name, size_t blocks);

// Pages of `blocks` blocks one after the other from `first` on, as rows that fit the node's codec
// set.
std::string TestPages(const CodecSet& codec_set, size_t blocks, uint64_t seed);
flashquant::v1::Pages TestPlaces(size_t blocks, size_t first);

// Root mean square of the difference over that of `expected`; both BF16.
double RelativeError(const std::string& expected, const std::string& actual);

// A session of its own on a connection of its own. Ends with its owner.
class TestClient {
 public:
  explicit TestClient(RunningNode& node);
  TestClient(RunningNode& node, const flashquant::v1::SessionRequest& request);
  ~TestClient();

  const grpc::Status& opened() const { return opened_; }
  const flashquant::v1::SessionResponse& session() const { return session_; }
  const std::string& id() const { return session_.session_id(); }
  flashquant::v1::KvCache::Stub& stub() { return *stub_; }
  flashquant::v1::Admin::Stub& admin() { return *admin_; }

  // Filled in but for what a test changes.
  flashquant::v1::StoreRequest StoreOf(const std::string& keys, const std::string& payload,
                                       flashquant::v1::Profile profile) const;
  flashquant::v1::LookupRequest LookupOf(const std::string& keys) const;
  flashquant::v1::LoadRequest LoadOf(const std::string& lease_id, uint32_t blocks) const;
  flashquant::v1::FetchRequest FetchOf(const std::string& keys, const std::string& node) const;

  // Calls; the reply is only valid with an OK status.
  grpc::Status Store(const flashquant::v1::StoreRequest& request,
                     flashquant::v1::StoreResponse& reply);
  grpc::Status Lookup(const flashquant::v1::LookupRequest& request,
                      flashquant::v1::LookupResponse& reply);
  grpc::Status Load(const flashquant::v1::LoadRequest& request,
                    flashquant::v1::LoadResponse& reply);

  // Stores a chain with pages of `seed` and looks it up; the test fails when either does.
  flashquant::v1::LookupResponse StoreAndLookup(const std::string& keys, const std::string& payload,
                                                flashquant::v1::Profile profile);

  // What it is delivered of a chain; "" when none of it is there.
  std::string LoadAll(const std::string& keys);

  void End();

 private:
  std::unique_ptr<flashquant::v1::KvCache::Stub> stub_;
  std::unique_ptr<flashquant::v1::Admin::Stub> admin_;
  grpc::ClientContext stream_context_;
  std::unique_ptr<
      grpc::ClientReaderWriter<flashquant::v1::SessionRequest, flashquant::v1::SessionResponse>>
      stream_;
  grpc::Status opened_;
  flashquant::v1::SessionResponse session_;
};

}  // namespace fq
