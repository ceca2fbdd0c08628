// A backend computes: pages in, codes out, and back. One interface, implemented by cpu/ and cuda/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/codec_set.h"
#include "kernels/params.h"

namespace fq {

// One page to encode. `base` and `refinement` point at the page's bytes in its extents (FORMAT.md
// section 1).
struct EncodeTask {
  PageKind kind = PageKind::kBase;  // kExact, kBase or kUniversal
  SourcePage source;
  int layer = 0, head = 0;    // into the codec set; unused by exact and universal
  int tokens = kBlockTokens;  // 1..64
  bool sink = false;
  std::byte* primary = nullptr;     // [page bytes of kind]
  std::byte* refinement = nullptr;  // [page bytes of kRefinement] or null
};

struct DecodeTask {
  PageKind kind = PageKind::kBase;
  const std::byte* primary = nullptr;
  const std::byte* refinement = nullptr;  // null: deliver base alone
  TargetPage target;
  int layer = 0, head = 0;
  int tokens = kBlockTokens;
  bool sink = false;
};

// Attention of the query heads of one kv head over encoded pages, in order.
struct AttendTask {
  int layer = 0, head = 0;
  int q_heads = 1;  // 1..16
  float scale = 1.0f;
  const float* q = nullptr;  // [q_heads][d]
  float* out = nullptr;      // [q_heads][d]
  float* lse = nullptr;      // [q_heads]
  struct Page {
    PageKind kind;
    const std::byte* primary;
    const std::byte* refinement;  // may be null
    int tokens;
    bool sink;
  };
  absl::Span<const Page> pages;
};

// Stateless; all methods may be called from any thread. Tasks are trusted (SlabCodec has checked
// them). The CPU backends work in the calling thread, with up to 300 KiB of scratch on its stack.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  // `codec_set` may be null when no task needs it. `head_size` and `dtype` hold for all tasks.
  struct Context {
    const CodecSet* codec_set = nullptr;
    int head_size = 64;
    DType dtype = DType::kBF16;
  };
  virtual absl::Status Encode(const Context& context, absl::Span<const EncodeTask> tasks) const = 0;
  virtual absl::Status Decode(const Context& context, absl::Span<const DecodeTask> tasks) const = 0;
  virtual absl::Status Attend(const Context& context, absl::Span<const AttendTask> tasks) const = 0;
};

// The CPU backend with the best SIMD target of this machine. Lives forever.
const Backend* CpuBackend();
// The scalar reference: same bytes as every SIMD target.
const Backend* ScalarBackend();

}  // namespace fq
