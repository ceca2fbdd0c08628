// FORMAT.md once more, slowly and in double: what a page decodes to. Shares no layout code with
// kernels/, so that an error there cannot hide here. Callable from any thread.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/codec_set.h"
#include "kernels/page_error.h"
#include "kernels/params.h"

namespace fq {

// A page and all that it needs to be read.
struct ReferencePage {
  PageKind kind = PageKind::kBase;  // kBase with a refinement is near-lossless
  int head_size = 64;
  DType dtype = DType::kF32;  // of exact pages
  bool sink = false;
  const std::byte* primary = nullptr;
  const std::byte* refinement = nullptr;  // or null
  const CodecSet* codec_set = nullptr;    // null for exact and universal
  int layer = 0, head = 0;
};

// Values in the coded domain [2][64][head_size], K then V: components, levels, or elements of an
// exact page.
std::vector<float> ReferenceCoded(const ReferencePage& page);

// Rows [2][64][head_size], K then V, before they are rounded to an element type.
std::vector<double> ReferenceRows(const ReferencePage& page);

// What MeasureError should find for a base page of `tokens` tokens that was made of `rows`
// [2][64][head_size] (finite, within +-65504).
PageError ReferenceError(const ReferencePage& page, const std::vector<double>& rows, int tokens);

struct AttendedRow {
  std::vector<double> out;  // [head_size]
  double lse;
};

// Softmax attention of q [head_size] in double over k and v [tokens][head_size].
AttendedRow AttendReference(const std::vector<double>& k, const std::vector<double>& v,
                            int head_size, const float* q, double scale);

}  // namespace fq
