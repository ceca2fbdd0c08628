// Namespaces of the node: name -> descriptor -> slab spaces, each with the codec and the store
// scope of one range. All methods thread-safe. Words and rules: proto/flashquant/v1/kv_cache.proto.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"
#include "kernels/codec_set.h"
#include "kernels/device.h"
#include "kernels/slab.h"
#include "server/descriptor.h"
#include "server/namespace_quality.h"

namespace fq {

// One (tenant, namespace, range). Immutable.
struct SlabSpace {
  std::string tenant;
  std::string namespace_name;
  Fingerprint fingerprint{};
  uint64_t scope = 0;  // of its keys in the store
  std::shared_ptr<const CodecSet>
      codec_set;  // null: exact and universal only; the registry holds it too
  std::shared_ptr<const SlabCodec> codec;           // of this space alone
  std::shared_ptr<const DeviceCodec> device_codec;  // the same on the GPU; null without one
  std::shared_ptr<NamespaceQuality> quality;  // of the namespace: its other ranges hold it too

  const SlabShape& shape() const { return codec->shape(); }
};

// Ends exclusive.
struct Range {
  uint32_t layer_begin = 0, layer_end = 0, head_begin = 0, head_end = 0;
  bool operator<(const Range& o) const {
    return std::tie(layer_begin, layer_end, head_begin, head_end) <
           std::tie(o.layer_begin, o.layer_end, o.head_begin, o.head_end);
  }
};

struct NamespaceLimits {
  uint32_t max_namespaces = 256;
  uint32_t max_ranges_per_namespace = 64;
};

// One namespace as Admin shows it.
struct NamespaceView {
  std::string name;
  Descriptor descriptor;
  std::shared_ptr<const CodecSet> codec_set;  // null without one
  std::shared_ptr<const NamespaceQuality> quality;
  std::vector<std::shared_ptr<const SlabSpace>> spaces;
};

class NamespaceRegistry {
 public:
  NamespaceRegistry(NamespaceLimits limits, std::vector<std::shared_ptr<const CodecSet>> codec_sets,
                    const Backend* backend, Device* device = nullptr);

  // The space of a range; made when new. `range` lies inside the descriptor. FailedPrecondition:
  // the namespace exists with another descriptor, or its codec set is not loaded (names both
  // values). InvalidArgument: the codec set does not fit. ResourceExhausted: too many namespaces or
  // ranges.
  absl::StatusOr<std::shared_ptr<const SlabSpace>> Open(const std::string& tenant,
                                                        const std::string& name,
                                                        const Descriptor& descriptor,
                                                        const Range& range);

  // The tenant's namespaces, all or the one of that name. NotFound: `name` is not empty and
  // unknown.
  absl::StatusOr<std::vector<NamespaceView>> List(const std::string& tenant,
                                                  const std::string& name) const;

  size_t size() const;

  // The worst of all namespaces: samples of all, the largest ratio, and whether any drifts.
  ProfileQuality WorstQuality(Profile profile) const;

  // Loaded codec sets that predict their error, or that do not.
  size_t CodecSets(bool with_expected_error) const;

 private:
  struct Entry {
    Descriptor descriptor;
    Fingerprint fingerprint{};
    std::shared_ptr<const CodecSet> codec_set;
    std::shared_ptr<NamespaceQuality> quality;
    std::map<Range, std::shared_ptr<const SlabSpace>> spaces;
    uint64_t last_opened = 0;  // in opens of the registry
    bool InUse() const;        // by a session or a call
  };
  using Name = std::pair<std::string, std::string>;  // tenant, name

  absl::Status MakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Entry> MakeEntry(const Descriptor& descriptor) const;
  absl::StatusOr<Entry*> FindOrAdd(const Name& name, const Descriptor& descriptor)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const NamespaceLimits limits_;
  const std::vector<std::shared_ptr<const CodecSet>> codec_sets_;
  const Backend* const backend_;
  Device* const device_;  // may be null
  mutable absl::Mutex mutex_;
  std::map<Name, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_scope_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t opens_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace fq
