#include "kernels/cuda/attend_source.h"

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

// "Classes<low, high>" of a list of classes.
std::string ClassesType(const std::vector<uint8_t>& classes) {
  uint64_t words[2] = {0, 0};
  for (size_t i = 0; i < classes.size(); ++i) {
    words[i / 16] |= static_cast<uint64_t>(classes[i]) << (4 * (i % 16));
  }
  return absl::StrCat("Classes<0x", absl::Hex(words[0]), "ull, 0x", absl::Hex(words[1]), "ull>");
}

std::string ProfileType(const AttendVariant::Instance& instance) {
  const std::string base = absl::StrCat(ClassesType(instance.k), ", ", ClassesType(instance.v));
  if (instance.k_refinement.empty()) return absl::StrCat("BaseProfile<", base, ">");
  return absl::StrCat("RefinedProfile<", base, ", ", ClassesType(instance.k_refinement), ", ",
                      ClassesType(instance.v_refinement), ">");
}

}  // namespace

int AttendVariant::NeededTables() const {
  int needed = 0;
  for (const Instance& instance : instances) {
    const std::vector<uint8_t>* const sides[2][2] = {
        {&instance.k, &instance.v}, {&instance.k_refinement, &instance.v_refinement}};
    for (int part : {0, 1}) {
      for (const std::vector<uint8_t>* side : sides[part]) {
        for (int bits : *side) {
          if (bits == 4 || bits == 2 || bits == 1) needed |= 1 << TableIndex(part, bits);
        }
      }
    }
  }
  return needed;
}

std::string AttendSource(const AttendVariant& variant) {
  std::string profiles;
  for (const auto& instance : variant.instances) {
    absl::StrAppend(&profiles, ",\n    ", ProfileType(instance));
  }
  return absl::StrCat(
      variant.refined() ? "#define FQ_REFINED\n" : "", "#define FQ_REPLICATED_TABLES ",
      variant.replicated_tables, "\n#define FQ_NEEDED_TABLES ", variant.NeededTables(), "\n",
      "#include \"kernels/cuda/attend_kernel.cuh\"\nnamespace fq {\nextern \"C\" ",
      "__global__ void __launch_bounds__(AttendWarps(", variant.head_size, ") * 32, 1) ",
      kAttendKernelName, "(\n    const __grid_constant__ AttendParams params) {\n  AttendBlock<",
      variant.head_size, ", ", variant.bf16 ? "true" : "false", profiles,
      ">(params);\n}\n}  // namespace fq\n");
}

}  // namespace fq
