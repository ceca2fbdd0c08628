#include "server/connected_peers.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

TEST(ConnectedPeers, Entry_IsThereAsLongAsItLives) {
  ConnectedPeers peers;
  EXPECT_EQ(peers.Find("a"), nullptr);
  Peer peer;
  peer.address = "10.0.0.7:1";
  auto first = peers.Add("a", peer);
  const auto second = peers.Add("b", Peer());
  EXPECT_EQ(peers.size(), 2u);
  const auto found = peers.Find("a");
  ASSERT_NE(found, nullptr);
  first.reset();
  EXPECT_EQ(peers.Find("a"), nullptr);
  EXPECT_EQ(peers.size(), 1u);
  EXPECT_EQ(found->address, "10.0.0.7:1");  // whoever found it keeps it
}

}  // namespace
}  // namespace fq
