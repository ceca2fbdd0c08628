// What a node says about itself, asked by the client.
#include "client/cpp/client.h"

#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "tests/testing/eventually.h"
#include "tests/testing/node_process.h"

namespace fq::client {
namespace {

std::unique_ptr<Client> ClientOf(const std::string& endpoint) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.deadline = absl::FromChrono(kPatience);
  return *Client::Create(options);
}

SessionSpec SmallSpec(const std::string& name) {
  SessionSpec spec;
  spec.namespace_name = name;
  spec.descriptor.model = "m";
  spec.descriptor.layers = 1;
  spec.descriptor.kv_heads = 1;
  spec.descriptor.head_size = 128;
  spec.range = WholeModel(spec.descriptor);
  return spec;
}

TEST(Client, Status_OfANewNode_IsEmptyAndServing) {
  const NodeProcess node({"--host-bytes", "8MiB"});
  const auto status = ClientOf(node.endpoint())->Status({});
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->state, "serving");
  EXPECT_EQ(status->host_capacity_bytes, 8u << 20);
  EXPECT_EQ(status->blocks, 0u);
  EXPECT_FALSE(status->counters.empty());
}

TEST(Client, Namespaces_ShowWhatSessionsOpened) {
  const NodeProcess node({});
  const auto client = ClientOf(node.endpoint());
  EXPECT_TRUE(client->Namespaces("", {})->empty());
  EXPECT_TRUE(absl::IsNotFound(client->Namespaces("a", {}).status()));
  const auto session = *client->Open(SmallSpec("a"), {});
  const auto infos = client->Namespaces("a", {});
  ASSERT_TRUE(infos.ok()) << infos.status();
  EXPECT_EQ(infos->at(0).descriptor.head_size, 128u);
  EXPECT_EQ(infos->at(0).fingerprint, FingerprintOf(SmallSpec("a").descriptor));
  EXPECT_EQ(infos->at(0).fingerprint, session->info().fingerprint);
}

TEST(Client, VerifyAndPurge_OfAnEmptyNamespace_CountNothing) {
  const NodeProcess node({});
  const auto client = ClientOf(node.endpoint());
  const auto session = *client->Open(SmallSpec("a"), {});
  EXPECT_EQ(client->Verify("a", {})->blocks, 0u);
  EXPECT_EQ(client->Purge("a", {})->blocks, 0u);
  EXPECT_TRUE(absl::IsNotFound(client->Purge("b", {}).status()));
}

TEST(Client, SessionEnds_NodeForgetsIt) {
  const NodeProcess node({});
  const auto client = ClientOf(node.endpoint());
  {
    const auto session = *client->Open(SmallSpec("a"), {});
    EXPECT_EQ(client->Status({})->sessions, 1u);
  }
  EXPECT_TRUE(Eventually([&] { return client->Status({})->sessions == 0; }));
}

}  // namespace
}  // namespace fq::client
