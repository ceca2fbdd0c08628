// Stands in for attend_compile.cc on the emulated GPU: there is no compiler at run time, so the
// profiles of attend_device_test are compiled here. Built with and without FQ_REFINED, and for each
// number of FQ_REPLICATED_TABLES.
#include "kernels/base/check.h"
#include "kernels/cuda/attend_compile.h"
#include "kernels/cuda/attend_kernel.cuh"

namespace fq {
namespace {

// Head size 64, as attend_device_test's Profiles() writes them.
using Base0 = BaseProfile<Classes<0x1122448ull, 0>, Classes<0x112248ull, 0>>;
using Refined0 = RefinedProfile<Classes<0x1122448ull, 0>, Classes<0x112248ull, 0>,
                                Classes<0x11824220ull, 0>, Classes<0x8222421ull, 0>>;
using Base1 = BaseProfile<Classes<0x1124ull, 0>, Classes<0x22244488ull, 0>>;
using Refined1 = RefinedProfile<Classes<0x1124ull, 0>, Classes<0x22244488ull, 0>,
                                Classes<0x22222222ull, 0>, Classes<0x22222011ull, 0>>;
using Base2 = BaseProfile<Classes<0x0ull, 0>, Classes<0x2ull, 0>>;
using Refined2 = RefinedProfile<Classes<0x0ull, 0>, Classes<0x2ull, 0>, Classes<0x10000002ull, 0>,
                                Classes<0x40ull, 0>>;

template <bool kBf16>
void Attend(const AttendParams params) {
#ifdef FQ_REFINED
  AttendBlock<64, kBf16, Base0, Refined0, Base1, Refined1, Base2, Refined2>(params);
#else
  AttendBlock<64, kBf16, Base0, Base1, Base2>(params);
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<const AttendKernel>> AttendKernel::Build(AttendVariant variant,
                                                                        const std::string&) {
  FQ_CHECK(variant.head_size == 64 && variant.refined() == kRefinedTables);
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
