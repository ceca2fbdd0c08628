// Size of a page of any kind (FORMAT.md section 1). Callable from any thread.
#pragma once

#include <cstddef>

#include "kernels/codec_set.h"
#include "kernels/params.h"

namespace fq {

// What fixes the size of a page besides its (layer, head).
struct PageFormat {
  PageKind kind = PageKind::kExact;
  DType dtype = DType::kF16;
  int head_size = 64;
  bool sink = false;
};

// Bytes of the codes of K (or of V) of all groups with these classes.
size_t CodeBytes(const std::vector<uint8_t>& classes);

// Bytes of a page. `profile` is only read for base and refinement pages and may be null otherwise.
size_t PageBytes(const PageFormat& format, const CodecProfile* profile);

}  // namespace fq
