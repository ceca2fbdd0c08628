// How the methods of the data plane run, whichever way they come.
#pragma once

#include "server/rpc/call_runner.h"

namespace fq::methods {

using Place = CallRunner::Method::Place;
using Deadline = CallRunner::Method::Deadline;
inline constexpr CallRunner::Method kStore = {"Store", Place::kWorker, Deadline::kCapped};
inline constexpr CallRunner::Method kLookup = {"Lookup", Place::kHere, Deadline::kCapped};
inline constexpr CallRunner::Method kLoad = {"Load", Place::kWorker, Deadline::kCapped};
inline constexpr CallRunner::Method kAttend = {"Attend", Place::kWorker, Deadline::kCapped};
inline constexpr CallRunner::Method kFetch = {"Fetch", Place::kFetcher, Deadline::kCapped};
inline constexpr CallRunner::Method kOpenPeerLink = {"OpenPeerLink", Place::kWorker,
                                                     Deadline::kCapped};
inline constexpr CallRunner::Method kClosePeerLink = {"ClosePeerLink", Place::kHere,
                                                      Deadline::kCapped};
inline constexpr CallRunner::Method kRelease = {"Release", Place::kHere, Deadline::kCapped};

}  // namespace fq::methods
