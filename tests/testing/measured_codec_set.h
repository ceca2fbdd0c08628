// Synthetic codec sets with the key `expected_error`, measured. For tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fq {

// BuildCodecSet of the same arguments, with the error that both profiles make on rows of MakeRow,
// found by the double reference and not by the code under test.
std::vector<std::byte> BuildMeasuredCodecSet(int layers, int kv_heads, int head_size,
                                             uint64_t seed);

}  // namespace fq
