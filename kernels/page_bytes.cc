#include "kernels/page_bytes.h"

#include "kernels/codec/page_layout.h"

namespace fq {

static_assert(kPageTokens == kBlockTokens && kSinkRows == kSinkTokens);

size_t CodeBytes(const std::vector<uint8_t>& classes) {
  size_t bytes = 0;
  for (uint8_t bits : classes) bytes += GroupBytes(bits);
  return bytes;
}

size_t PageBytes(const PageFormat& format, const CodecProfile* profile) {
  const size_t sink_bytes = format.sink ? SinkRecordBytes(format.head_size) : 0;
  switch (format.kind) {
    case PageKind::kExact:
      return ExactPageBytes(format.head_size, ElementBytes(format.dtype));
    case PageKind::kUniversal:
      return UniversalPageBytes(format.head_size) + sink_bytes;
    case PageKind::kBase:
      return CodeBytes(profile->k) + CodeBytes(profile->v) + sink_bytes;
    case PageKind::kRefinement:
      return CodeBytes(profile->k_refinement) + CodeBytes(profile->v_refinement);
  }
  return 0;
}

}  // namespace fq
