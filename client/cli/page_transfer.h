// Pages of a prefix between memory and a node, in as many calls as the node's limits ask for:
// through a segment on the same host, inline otherwise. Dense blocks, one behind the other.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cpp/client.h"

namespace fq::cli {

class PageTransfer {
 public:
  // ResourceExhausted: one block is more than the node takes inline.
  static absl::StatusOr<std::unique_ptr<PageTransfer>> Create(client::Session& session,
                                                              absl::Duration deadline);

  // `pages`: [keys.size()] dense blocks; keys from the first block of the chain.
  absl::StatusOr<std::vector<client::BlockStatus>> Store(client::Profile profile,
                                                         absl::Span<const client::BlockKey> keys,
                                                         absl::Span<const std::byte> pages);

  // Blocks [0, pages.size() / block_bytes) of the lease. An error: the node did not answer.
  absl::StatusOr<std::vector<client::BlockStatus>> Load(const client::LeaseId& lease,
                                                        client::Profile floor,
                                                        absl::Span<std::byte> pages);

  uint64_t block_bytes() const { return block_bytes_; }
  size_t blocks_per_call() const { return blocks_per_call_; }

 private:
  PageTransfer(client::Session& session, absl::Duration deadline);
  absl::StatusOr<std::vector<client::BlockStatus>> LoadSome(client::LoadCall call,
                                                            absl::Span<std::byte> pages);
  absl::StatusOr<std::vector<client::BlockStatus>> StoreSome(client::StoreCall call,
                                                             absl::Span<const std::byte> pages);

  client::Session& session_;
  const absl::Duration deadline_;
  const uint64_t block_bytes_;
  const client::PageLayout layout_;
  size_t blocks_per_call_ = 0;
  std::shared_ptr<client::Segment> segment_;  // null: inline; running calls hold it too
};

}  // namespace fq::cli
