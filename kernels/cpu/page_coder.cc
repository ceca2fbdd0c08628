#include "kernels/cpu/page_coder.h"

#include <algorithm>

#include "kernels/cpu/exact_rows.h"
#include "kernels/cpu/sink_rows.h"
#include "kernels/cpu/universal_rows.h"
#include "kernels/page_bytes.h"

namespace fq {
namespace {

constexpr Side kSides[] = {Side::kKey, Side::kValue};
constexpr int kMatrix = kMaxHeadSize * kPageTokens;

const SourceRows& RowsOf(const SourcePage& page, Side side) {
  return side == Side::kKey ? page.k : page.v;
}
const TargetRows& RowsOf(const TargetPage& page, Side side) {
  return side == Side::kKey ? page.k : page.v;
}

// Codes of V follow those of K in a page.
size_t SideOffset(Side side, const std::vector<uint8_t>& k_classes) {
  return side == Side::kKey ? 0 : CodeBytes(k_classes);
}

GroupPlan BasePlan(const CodedSide& coded) {
  return {coded.side, &coded.base_classes(), &coded.codec->base};
}
GroupPlan RefinementPlan(const CodedSide& coded) {
  return {coded.side, &coded.refinement_classes(), &coded.codec->refinement};
}

// Rows that the sink record holds instead of the codes.
int SinkEnd(bool sink, int tokens) { return sink ? std::min(tokens, kSinkRows) : 0; }

void EncodeRefinement(const Primitives& primitives, const CodedSide& coded, const float* u,
                      const std::byte* base_codes, std::byte* codes) {
  alignas(64) float z[kMatrix];
  DecodeGroups(primitives, BasePlan(coded), base_codes, z);
  const GroupMask groups = CodedGroups(coded.refinement_classes());
  const int components = static_cast<int>(coded.refinement_classes().size()) * kGroupChannels;
  for (int c = 0; c < components; ++c) {
    if (!((groups >> (c / kGroupChannels)) & 1u)) continue;
    float* row = z + c * kPageTokens;
    primitives.scale_residual(u + c * kPageTokens, row, coded.codec->sd[c], row);
  }
  EncodeGroups(primitives, RefinementPlan(coded), z, codes);
}

void EncodeBaseSide(const Primitives& primitives, const Backend::Context& context,
                    const EncodeTask& task, Side side) {
  const CodedSide coded = CodedSide::Of(*context.codec_set, task.layer, task.head, side);
  const int d = context.head_size;
  alignas(64) float x[kMatrix];
  alignas(64) float u[kMatrix];
  RowRange range{context.dtype, d, 0, task.tokens};
  primitives.load_rows(RowsOf(task.source, side), range, x);
  if (task.sink) {
    const size_t codes = CodeBytes(coded.profile->k) + CodeBytes(coded.profile->v);
    EncodeSinkRows(side, d, x, task.primary + codes);
    range.token_begin = SinkEnd(task.sink, task.tokens);
  }
  primitives.centre(coded.codec->mu, range, x);
  GroupMask groups = CodedGroups(coded.base_classes());
  if (task.refinement != nullptr) groups |= CodedGroups(coded.refinement_classes());
  primitives.transform(coded.codec->a, d, groups, x, u);
  std::byte* base_codes = task.primary + SideOffset(side, coded.profile->k);
  EncodeGroups(primitives, BasePlan(coded), u, base_codes);
  if (task.refinement != nullptr) {
    EncodeRefinement(primitives, coded, u, base_codes,
                     task.refinement + SideOffset(side, coded.profile->k_refinement));
  }
}

void EncodeUniversalSide(const Primitives& primitives, const Backend::Context& context,
                         const EncodeTask& task, Side side) {
  const int d = context.head_size;
  alignas(64) float x[kMatrix];
  primitives.load_rows(RowsOf(task.source, side), {context.dtype, d, 0, task.tokens}, x);
  if (task.sink) EncodeSinkRows(side, d, x, task.primary + UniversalPageBytes(d));
  EncodeUniversalRows(side, d, x, task.primary);
}

// Delivers the rows that the sink record holds.
void DeliverSinkRows(const Primitives& primitives, const RowRange& range, const std::byte* record,
                     Side side, const TargetRows& rows) {
  alignas(64) float x[kMatrix];
  DecodeSinkRows(side, range.head_size, record, x);
  primitives.store_rows(x, range, rows);
}

void DecodeBaseSide(const Primitives& primitives, const Backend::Context& context,
                    const DecodeTask& task, Side side) {
  CodedSide coded = CodedSide::Of(*context.codec_set, task.layer, task.head, side);
  coded.base = task.primary;
  coded.refinement = task.refinement;
  const TargetRows& rows = RowsOf(task.target, side);
  const int sink_end = SinkEnd(task.sink, task.tokens);
  if (sink_end < task.tokens) {
    alignas(64) float v[kMatrix];
    DecodeCoded(primitives, coded, v);
    primitives.inverse_rows(coded.codec->a_inv, coded.codec->mu, coded.groups(), v,
                            {context.dtype, context.head_size, sink_end, task.tokens}, rows);
  }
  if (sink_end > 0) {
    const size_t codes = CodeBytes(coded.profile->k) + CodeBytes(coded.profile->v);
    DeliverSinkRows(primitives, {context.dtype, context.head_size, 0, sink_end},
                    task.primary + codes, side, rows);
  }
}

void DecodeUniversalSide(const Primitives& primitives, const Backend::Context& context,
                         const DecodeTask& task, Side side) {
  const int d = context.head_size;
  alignas(64) float v[kMatrix];
  DecodeUniversalLevels(side, d, task.primary, v);
  InverseUniversalRows(side, d, task.primary, v);
  if (task.sink) DecodeSinkRows(side, d, task.primary + UniversalPageBytes(d), v);
  primitives.store_rows(v, {context.dtype, d, 0, task.tokens}, RowsOf(task.target, side));
}

}  // namespace

CodedSide CodedSide::Of(const CodecSet& codec_set, int layer, int head, Side side) {
  CodedSide coded;
  coded.side = side;
  coded.profile = &codec_set.profile(layer, head);
  coded.codec = side == Side::kKey ? &codec_set.k(layer, head) : &codec_set.v(layer, head);
  return coded;
}

const std::vector<uint8_t>& CodedSide::base_classes() const {
  return side == Side::kKey ? profile->k : profile->v;
}

const std::vector<uint8_t>& CodedSide::refinement_classes() const {
  return side == Side::kKey ? profile->k_refinement : profile->v_refinement;
}

GroupMask CodedSide::groups() const {
  const GroupMask refined = refinement != nullptr ? CodedGroups(refinement_classes()) : 0;
  return CodedGroups(base_classes()) | refined;
}

void DecodeCoded(const Primitives& primitives, const CodedSide& coded, float* v) {
  DecodeGroups(primitives, BasePlan(coded), coded.base + SideOffset(coded.side, coded.profile->k),
               v);
  if (coded.refinement == nullptr) return;
  alignas(64) float refinement[kMatrix];
  DecodeGroups(primitives, RefinementPlan(coded),
               coded.refinement + SideOffset(coded.side, coded.profile->k_refinement), refinement);
  const GroupMask groups = CodedGroups(coded.refinement_classes());
  const int components = static_cast<int>(coded.refinement_classes().size()) * kGroupChannels;
  for (int c = 0; c < components; ++c) {
    if (!((groups >> (c / kGroupChannels)) & 1u)) continue;
    primitives.refine(coded.codec->sd[c], refinement + c * kPageTokens, v + c * kPageTokens);
  }
}

void EncodePage(const Primitives& primitives, const Backend::Context& context,
                const EncodeTask& task) {
  const ExactShape exact{context.dtype, context.head_size, task.tokens};
  for (Side side : kSides) {
    if (task.kind == PageKind::kExact) {
      EncodeExactRows(side, exact, RowsOf(task.source, side), task.primary);
    } else if (task.kind == PageKind::kUniversal) {
      EncodeUniversalSide(primitives, context, task, side);
    } else {
      EncodeBaseSide(primitives, context, task, side);
    }
  }
}

void DecodePage(const Primitives& primitives, const Backend::Context& context,
                const DecodeTask& task) {
  const ExactShape exact{context.dtype, context.head_size, task.tokens};
  for (Side side : kSides) {
    if (task.kind == PageKind::kExact) {
      DecodeExactRows(side, exact, task.primary, RowsOf(task.target, side));
    } else if (task.kind == PageKind::kUniversal) {
      DecodeUniversalSide(primitives, context, task, side);
    } else {
      DecodeBaseSide(primitives, context, task, side);
    }
  }
}

}  // namespace fq
