// The NCCL library, opened when the node starts: builds need neither its header nor the library.
// The few types and functions that are used are declared here as NCCL 2.18 has them; later versions
// take the same (tests/server/peers/nccl_library_test.cc compares them with nccl.h).
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fq {

struct NcclUniqueId {
  char internal[128];
};

inline constexpr int kNcclSuccess = 0, kNcclInProgress = 7;  // of ncclResult_t
inline constexpr int kNcclUint8 = 1;                         // of ncclDataType_t
inline constexpr int kNcclOldest = 21800;                    // 2.18.0: maxCTAs, aborts that end

// ncclConfig_t: the library takes the members that `size` covers.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = kNcclOldest;
  int blocking = INT_MIN;  // INT_MIN, null: the library's default
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN, max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

using NcclCommHandle = struct NcclCommunicator*;
using NcclStream = struct CUstream_st*;

// Functions of one library, by their names without "nccl". Any thread; the library stays open.
struct NcclLibrary {
  // `name` as dlopen takes it. NotFound: the library, or a function of it; FailedPrecondition:
  // older than 2.18 (names both versions).
  static absl::StatusOr<std::unique_ptr<const NcclLibrary>> Open(const std::string& name);

  std::string version;  // as 2.29.7
  int (*GetUniqueId)(NcclUniqueId* id) = nullptr;
  int (*CommInitRankConfig)(NcclCommHandle* comm, int ranks, NcclUniqueId id, int rank,
                            NcclConfig* config) = nullptr;
  int (*CommGetAsyncError)(NcclCommHandle comm, int* result) = nullptr;
  int (*CommAbort)(NcclCommHandle comm) = nullptr;
  int (*Send)(const void* data, size_t count, int type, int peer, NcclCommHandle comm,
              NcclStream stream) = nullptr;
  int (*Recv)(void* data, size_t count, int type, int peer, NcclCommHandle comm,
              NcclStream stream) = nullptr;
  int (*GroupStart)() = nullptr;
  int (*GroupEnd)() = nullptr;
  const char* (*GetErrorString)(int result) = nullptr;

  // OK for success and for work in progress; Unavailable names the function and NCCL's reason.
  absl::Status Check(int result, const char* function) const;
};

}  // namespace fq
