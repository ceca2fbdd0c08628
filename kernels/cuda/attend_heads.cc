#include "kernels/cuda/attend_heads.h"

#include <algorithm>

#include "kernels/codec/page_layout.h"
#include "kernels/page_bytes.h"

namespace fq {
namespace {

// Nanoseconds a multiprocessor of an H200 spends on a page, and on each of its groups by class:
// fits to pages alone, 17 profiles, and to pages with refinements of class 2, 8 profiles, residuals
// at most 6 % (PERFORMANCE.md). Refinements of other classes were not measured. Only the ratios
// matter.
struct Costs {
  double page, of8, of4, of2, of1;  // groups of class 8, 4, 2, 1
  double Of(int bits) const {
    return bits == 8 ? of8 : bits == 4 ? of4 : bits == 2 ? of2 : bits == 1 ? of1 : 0;
  }
};
constexpr Costs kBaseAlone = {35.9, 4.84, 6.46, 3.94, 3.45};
// Beside refinements class 4 has a plain table.
constexpr Costs kBaseOfRefined = {25, 2, 14, 2, 6}, kRefinement = {0, 9, 14, 5.2, 8};

double CostOf(const Costs& costs, const std::vector<uint8_t>& k, const std::vector<uint8_t>& v) {
  double cost = costs.page;
  for (const auto* classes : {&k, &v}) {
    for (uint8_t bits : *classes) cost += costs.Of(bits);
  }
  return cost;
}

// Code of an instance, which joins the variant if it is new.
int CodeOf(const AttendVariant::Instance& instance, AttendVariant* variant) {
  auto& all = variant->instances;
  const auto found = std::find(all.begin(), all.end(), instance);
  const int index = static_cast<int>(found - all.begin());
  if (found == all.end()) all.push_back(instance);
  return kAttendFirstProfile + index;
}

// Offsets of the pages of a slab's heads, layer by layer.
class SlabWalk {
 public:
  SlabWalk(const CodecSet& set, const AttendRange& range) : set_(set), range_(range) {}

  uint32_t OffsetOf(PageKind kind, bool sink, int layer, int head) const {
    uint32_t offset = 0;
    for (int l = range_.layer_begin; l <= layer; ++l) {
      for (int h = range_.head_begin; h < (l == layer ? head : range_.head_end); ++h) {
        offset += static_cast<uint32_t>(
            PageBytes({kind, range_.dtype, set_.head_size(), sink}, &set_.profile(l, h)));
      }
    }
    return offset;
  }

 private:
  const CodecSet& set_;
  const AttendRange& range_;
};

}  // namespace

AttendLayer DescribeLayer(const CodecSet& set, const AttendRange& range, int layer, bool refined,
                          const std::byte* tables) {
  AttendLayer described;
  described.variant.head_size = set.head_size();
  described.variant.bf16 = range.dtype == DType::kBF16;
  const SlabWalk walk(set, range);
  const size_t record_bytes = TablesLayout{set.head_size()}.Bytes();
  for (int h = range.head_begin; h < range.head_end; ++h) {
    const CodecProfile& p = set.profile(layer, h);
    AttendHead head;
    head.base_code = CodeOf({p.k, p.v, {}, {}}, &described.variant);
    head.base_cost = CostOf(kBaseAlone, p.k, p.v);
    if (refined) {
      head.refined_code = CodeOf({p.k, p.v, p.k_refinement, p.v_refinement}, &described.variant);
      head.refined_cost =
          CostOf(kBaseOfRefined, p.k, p.v) + CostOf(kRefinement, p.k_refinement, p.v_refinement);
    }
    head.exact_offset = walk.OffsetOf(PageKind::kExact, false, layer, h);
    head.base_offset = walk.OffsetOf(PageKind::kBase, false, layer, h);
    head.refinement_offset = walk.OffsetOf(PageKind::kRefinement, false, layer, h);
    head.sink_block_offset = walk.OffsetOf(PageKind::kBase, true, layer, h);
    head.sink_record_offset =
        head.sink_block_offset + static_cast<uint32_t>(CodeBytes(p.k) + CodeBytes(p.v));
    const auto bytes_of = [&](PageKind kind) {
      return static_cast<int>(PageBytes({kind, range.dtype, set.head_size(), false}, &p));
    };
    head.exact_bytes = bytes_of(PageKind::kExact);
    head.base_bytes = bytes_of(PageKind::kBase);
    head.refinement_bytes = bytes_of(PageKind::kRefinement);
    head.sink_record_bytes = static_cast<int>(SinkRecordBytes(set.head_size()));
    head.record = tables + (layer * set.kv_heads() + h) * record_bytes;
    described.heads.push_back(head);
  }
  return described;
}

}  // namespace fq
