// The source of an attention kernel for given profiles, put together for the run-time compiler.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/codec_set.h"
#include "kernels/cuda/attend_shared.h"

namespace fq {

// The profiles that one kernel is compiled for.
struct AttendVariant {
  int head_size = 128;
  bool bf16 = false;  // element type of queries, exact pages and outputs
  struct Instance {
    std::vector<uint8_t> k, v;                        // classes, [d / 8]
    std::vector<uint8_t> k_refinement, v_refinement;  // empty: base pages alone
    bool operator==(const Instance& other) const {
      return k == other.k && v == other.v && k_refinement == other.k_refinement &&
             v_refinement == other.v_refinement;
    }
  };
  std::vector<Instance> instances;  // AttendPiece::code = kAttendFirstProfile + index
  // Tables that shared memory holds once for every lane (AttendTables). AttendKernel::Build lowers
  // it to what the device has room for.
  int replicated_tables = kMostReplicated;

  // Whether any instance reads refinements.
  bool refined() const {
    for (const Instance& instance : instances) {
      if (!instance.k_refinement.empty()) return true;
    }
    return false;
  }
  // The tables that some instance reads, of those that AttendTables counts.
  int NeededTables() const;
  AttendTables tables() const { return {replicated_tables, refined(), NeededTables()}; }
};

inline constexpr char kAttendKernelName[] = "fq_attend";

// A file that the compiler may include.
struct EmbeddedFile {
  const char* name;
  const char* text;
};
// Headers of the kernel, from this folder, and stand-ins for the few standard ones they include.
absl::Span<const EmbeddedFile> AttendHeaders();

// The translation unit: one kernel, kAttendKernelName, extern "C".
std::string AttendSource(const AttendVariant& variant);

}  // namespace fq
