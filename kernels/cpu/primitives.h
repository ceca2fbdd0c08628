// The loops a CPU backend is made of, as a table of functions: written once in scalar code (the
// reference) and once for every SIMD target. The flow around them (encode_page, decode_page,
// attend_page) is shared, so that backends can differ only here. All functions are pure and may be
// called from any thread. Matrices of a page are [channel][64 tokens].
#pragma once

#include <cstdint>

#include "kernels/codec/nearest.h"
#include "kernels/codec/page_layout.h"
#include "kernels/params.h"

namespace fq {

// Rows [token_begin, token_end) of one side of a page in a caller's memory.
struct RowRange {
  DType dtype = DType::kF16;
  int head_size = 64;
  int token_begin = 0;
  int token_end = kPageTokens;
};

// One bit per channel group: the groups that hold any bits. Others are 0 and skipped.
using GroupMask = uint32_t;

struct Primitives {
  const char* name;

  // x[c][t] = the element in FP32; rows outside the range become 0.
  void (*load_rows)(const SourceRows& rows, const RowRange& range, float* x);
  // The inverse, rounded to the element type; rows outside the range are not touched.
  void (*store_rows)(const float* x, const RowRange& range, const TargetRows& rows);
  // In place: x - mu with the rules for NaN and outliers; rows outside the range become 0.
  void (*centre)(const float* mu, const RowRange& range, float* x);

  // u[i][t] = fma chain over k of a[i][k] x[k][t], in rising k from 0. Groups outside the mask are
  // left as they are.
  void (*transform)(const float* a, int head_size, GroupMask groups, const float* x, float* u);
  // Fills table->start from table->value.
  void (*prepare_search)(int values, SearchTable* table);
  // codes[b] = entry nearest to (in[0][b], .. in[values - 1][b]); in is [values][count], count a
  // multiple of 64.
  void (*find_nearest)(const SearchTable& table, int values, int count, const float* in,
                       uint8_t* codes);
  // 8-bit class of a group: codes[i] of in[i], 512 of them.
  void (*quantise_class8)(const float* in, uint8_t* codes);
  // z[c][t] = (u - base) / sd of one component, 64 tokens.
  void (*scale_residual)(const float* u, const float* base, float sd, float* z);

  // values[i] = FP16 halves[i]; count a multiple of 64.
  void (*widen_halves)(const uint16_t* halves, int count, float* values);
  // even[i] = low half, odd[i] = high half of pairs[i], 64 of them.
  void (*widen_pairs)(const uint32_t* pairs, float* even, float* odd);
  // v[c][t] = fma(sd, refinement, v) of one component, 64 tokens.
  void (*refine)(float sd, const float* refinement, float* v);
  // Rows of the range = a_inv v + mu, rounded to the element type. Sums run over the groups of the
  // mask.
  void (*inverse_rows)(const float* a_inv, const float* mu, GroupMask groups, const float* v,
                       const RowRange& range, const TargetRows& rows);

  // scores[t] = sum over c of q[c] v[c][t], 64 tokens.
  void (*score)(const float* q, int head_size, const float* v, float* scores);
  // out[c] = out[c] * decay + sum over t of weights[t] v[c][t], 64 tokens.
  void (*accumulate)(const float* weights, int head_size, const float* v, float decay, float* out);
};

// The reference: plain loops around codec/.
const Primitives& ScalarPrimitives();
// The best compiled SIMD target that this machine has; ScalarPrimitives where none has fused
// multiply-add.
const Primitives& SimdPrimitives();

}  // namespace fq
