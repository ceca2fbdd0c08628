// Stands in for attend_compile.cc on the emulated GPU: there is no compiler at run time, so the
// profiles of attend_device_test are compiled here. Built with and without FQ_REFINED, and for each
// number of FQ_REPLICATED_TABLES and FQ_HEAD_SIZE.
#include "kernels/base/check.h"
#include "kernels/cuda/attend_compile.h"
#include "kernels/cuda/attend_kernel.cuh"

namespace fq {
namespace {

constexpr int kHeadSize = FQ_HEAD_SIZE;

// Word `half` of Classes for kHeadSize from the classes of eight groups, a nibble each, as
// attend_device_test's Profiles() spreads them.
constexpr uint64_t Grown(uint64_t eight, int half) {
  uint64_t word = 0;
  for (int i = 0; i < 16 && 16 * half + i < kHeadSize / 8; ++i) {
    int group = 16 * half + i;
    if (kHeadSize > 64 && group == kHeadSize / 16) --group;
    word |= (eight >> (4 * (group * 8 / (kHeadSize / 8))) & 15) << (4 * i);
  }
  return word;
}
template <uint64_t kEight>
using Of = Classes<Grown(kEight, 0), Grown(kEight, 1)>;

using Base0 = BaseProfile<Of<0x1122448>, Of<0x112248>>;
using Refined0 = RefinedProfile<Of<0x1122448>, Of<0x112248>, Of<0x11824220>, Of<0x8222421>>;
using Base1 = BaseProfile<Of<0x1124>, Of<0x22244488>>;
using Refined1 = RefinedProfile<Of<0x1124>, Of<0x22244488>, Of<0x22222222>, Of<0x22222011>>;
using Base2 = BaseProfile<Of<0>, Of<2>>;
using Refined2 = RefinedProfile<Of<0>, Of<2>, Of<0x10000002>, Of<0x40>>;

template <bool kBf16>
void Attend(const AttendParams params) {
#ifdef FQ_REFINED
  AttendBlock<kHeadSize, kBf16, Base0, Refined0, Base1, Refined1, Base2, Refined2>(params);
#else
  AttendBlock<kHeadSize, kBf16, Base0, Base1, Base2>(params);
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<const AttendKernel>> AttendKernel::Build(AttendVariant variant,
                                                                        const std::string&) {
  FQ_CHECK(variant.head_size == kHeadSize && variant.refined() == kRefinedTables);
  FQ_CHECK(variant.instances.size() == (kRefinedTables ? 6 : 3));
  std::unique_ptr<AttendKernel> loaded(new AttendKernel);
  loaded->head_size_ = variant.head_size;
  loaded->bf16_ = variant.bf16;
  loaded->replicated_tables_ = kTables.replicated;
  loaded->shared_bytes_ = AttendSharedBytes(variant.head_size, kTables);
  loaded->function_ = variant.bf16 ? reinterpret_cast<const void*>(&Attend<true>)
                                   : reinterpret_cast<const void*>(&Attend<false>);
  return loaded;
}

AttendKernel::~AttendKernel() = default;

}  // namespace fq
