// Results as messages carry them. Any thread.
#pragma once

#include <vector>

#include "server/page_path.h"
#include "server/rpc/wire.h"

namespace fq {

// Of a StoreResponse or a LoadResponse.
template <typename Response>
void FillStatuses(const std::vector<BlockOutcome>& outcomes, Response& response) {
  response.mutable_statuses()->Reserve(static_cast<int>(outcomes.size()));
  for (BlockOutcome outcome : outcomes) {
    response.add_statuses(static_cast<wire::BlockStatus>(outcome));
  }
}

}  // namespace fq
