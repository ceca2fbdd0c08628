// Synthetic codec sets for tests: random well-conditioned transforms, every class, 2 to 2.3 bits a
// value. The same arguments give the same bytes on every machine. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/codec_set.h"

namespace fq {

// Bytes of a `.fqcs` file (FORMAT.md section 7), model "synthetic", accepted by CodecSet::Parse.
std::vector<std::byte> BuildCodecSet(int layers, int kv_heads, int head_size, uint64_t seed);

// The file with a JSON merge patch (RFC 7386) applied to its text, sealed.
std::vector<std::byte> PatchCodecSet(const std::vector<std::byte>& file, const std::string& patch);

// The file with one profile for all heads, all of whose groups have class `bits` in the base and 2
// in the refinement.
std::vector<std::byte> WithOneClass(const std::vector<std::byte>& file, const CodecSet& set,
                                    int bits);

// Puts the right length and SHA-256 into the bytes of a codec-set file, for tests that change its
// contents.
void SealCodecSet(std::vector<std::byte>* file);

// A row as the codec set expects it: mu + A^-1 u with u about a unit Gaussian. `row` is
// [head_size].
void MakeRow(const HeadCodec& codec, int head_size, uint64_t seed, float* row);

}  // namespace fq
