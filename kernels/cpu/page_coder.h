// Encodes and decodes one page: the flow that the scalar and the SIMD backends share. Scratch is on
// the stack, up to 300 KiB. Pure functions, callable from any thread.
#pragma once

#include "kernels/backend.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cpu/group_codes.h"
#include "kernels/cpu/primitives.h"

namespace fq {

void EncodePage(const Primitives& primitives, const Backend::Context& context,
                const EncodeTask& task);
void DecodePage(const Primitives& primitives, const Backend::Context& context,
                const DecodeTask& task);

// One side of a base page (with its refinement, or null) of a (layer, head).
struct CodedSide {
  Side side = Side::kKey;
  const CodecProfile* profile = nullptr;
  const HeadCodec* codec = nullptr;
  const std::byte* base = nullptr;        // start of the base page
  const std::byte* refinement = nullptr;  // start of the refinement page, or null

  static CodedSide Of(const CodecSet& codec_set, int layer, int head, Side side);
  const std::vector<uint8_t>& base_classes() const;
  const std::vector<uint8_t>& refinement_classes() const;
  // Groups that decode to anything but 0.
  GroupMask groups() const;
};

// Values in the coded domain, v [head_size][64] (FORMAT.md section 2, Values).
void DecodeCoded(const Primitives& primitives, const CodedSide& coded, float* v);

}  // namespace fq
