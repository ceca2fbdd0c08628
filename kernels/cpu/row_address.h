// Addresses of rows that lie scattered over a caller's chunks (params.h, Rows). Callable from any
// thread.
#pragma once

#include <cstddef>

#include "kernels/params.h"

namespace fq {

// Address of element (token, channel 0).
template <typename Byte>
Byte* RowAddress(const Rows<Byte>& rows, int token, int element_bytes) {
  const int index = rows.first_token + token;
  const int chunk = index / rows.tokens_per_chunk;
  const int64_t in_chunk = index - chunk * rows.tokens_per_chunk;
  return rows.chunks[chunk] + in_chunk * rows.token_stride * element_bytes;
}

// First token after `token` that lies in another chunk, at most `end`.
template <typename Byte>
int ChunkEnd(const Rows<Byte>& rows, int token, int end) {
  const int in_chunk = (rows.first_token + token) % rows.tokens_per_chunk;
  const int next = token + rows.tokens_per_chunk - in_chunk;
  return next < end ? next : end;
}

}  // namespace fq
