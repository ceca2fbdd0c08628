#include "kernels/cuda/attend_compile.h"

#include <elf.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "gtest/gtest.h"
#include "kernels/cuda/attend_heads.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

AttendVariant Variant(int head_size, bool bf16, bool refined = false) {
  AttendVariant variant;
  variant.head_size = head_size;
  variant.bf16 = bf16;
  auto set = CodecSet::Parse(BuildCodecSet(1, 1, head_size, 5));
  EXPECT_TRUE(set.ok()) << set.status();
  const CodecProfile& profile = (*set)->profile(0, 0);
  variant.instances.push_back({profile.k, profile.v, {}, {}});
  if (refined) {
    variant.instances.push_back({profile.k, profile.v, profile.k_refinement, profile.v_refinement});
  }
  return variant;
}

// How often each opcode (the low 12 bits of 16 bytes) is in the kernel's section of machine code.
std::map<int, int> CountOpcodes(const std::vector<char>& code) {
  std::map<int, int> counts;
  Elf64_Ehdr header;
  std::memcpy(&header, code.data(), sizeof(header));
  const auto section = [&](int i) {
    Elf64_Shdr found;
    std::memcpy(&found, code.data() + header.e_shoff + i * sizeof(found), sizeof(found));
    return found;
  };
  const Elf64_Shdr names = section(header.e_shstrndx);
  for (int i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr text = section(i);
    if (std::string(code.data() + names.sh_offset + text.sh_name) !=
        std::string(".text.") + kAttendKernelName) {
      continue;
    }
    for (size_t at = text.sh_offset; at < text.sh_offset + text.sh_size; at += 16) {
      uint64_t word;
      std::memcpy(&word, code.data() + at, sizeof(word));
      ++counts[static_cast<int>(word & 0xFFF)];
    }
  }
  return counts;
}

// What a GPU of each architecture has, and what its kernels were when they were measured.
struct Architecture {
  const char* name;
  int shared_bytes;               // that one block may have
  int replicated_tables;          // that fit
  int instructions[2], local[2];  // of base pages; of base pages and refinements
};
constexpr Architecture kArchitectures[] = {{"sm_80", 163 * 1024, 2, {2600, 4136}, {0, 0}},
                                           {"sm_86", 99 * 1024, 1, {2504, 4008}, {0, 0}},
                                           {"sm_89", 99 * 1024, 1, {2504, 4008}, {0, 0}},
                                           {"sm_90a", 227 * 1024, 3, {2640, 4192}, {0, 0}},
                                           {"sm_100", 227 * 1024, 3, {2328, 3920}, {0, 0}},
                                           {"sm_120", 99 * 1024, 1, {2280, 3880}, {0, 0}}};

class AttendArchitectureTest : public testing::TestWithParam<Architecture> {};

TEST_P(AttendArchitectureTest, SharedMemory_HoldsTheTables) {
  const Architecture& a = GetParam();
  for (int head_size : {64, 128, 256}) {
    for (bool refined : {false, true}) {
      EXPECT_EQ(ReplicatedThatFit(head_size, refined, a.shared_bytes), a.replicated_tables);
    }
  }
}

// No GPU is needed to compile for one, nor to see what the compiler made of it: as good as nothing
// in local memory, all matrix products there, and no more instructions than when it was measured,
// or a tenth.
TEST_P(AttendArchitectureTest, MachineCode_WithinItsBudget) {
  constexpr int kLoadLocal = 0x983, kStoreLocal = 0x387, kMatrix = 0x23C;
  // K and the remainder of its first step, V, and the two kinds of rows.
  constexpr int kMatrixInstructions = 4 * (5 + 1) + 4 * 6 + 4 * 8;
  for (bool refined : {false, true}) {
    AttendVariant variant = Variant(128, false, refined);
    variant.replicated_tables = GetParam().replicated_tables;
    auto code = CompileAttend(variant, GetParam().name, "");
    ASSERT_TRUE(code.ok()) << code.status();
    std::map<int, int> opcodes = CountOpcodes(*code);
    int instructions = 0;
    for (const auto& [opcode, count] : opcodes) instructions += count;
    const int local = opcodes[kLoadLocal] + opcodes[kStoreLocal];
    std::printf("%s: %d instructions, %d of local memory\n", GetParam().name, instructions, local);
    EXPECT_LE(local, GetParam().local[refined]);
    EXPECT_GE(opcodes[kMatrix], kMatrixInstructions);
    EXPECT_LE(instructions, GetParam().instructions[refined] * 11 / 10);
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, AttendArchitectureTest, testing::ValuesIn(kArchitectures),
                         [](const auto& of) { return std::string(of.param.name); });

TEST(AttendCompileTest, SharedMemoryOfOldGpus_HoldsNoTable) {
  EXPECT_EQ(ReplicatedThatFit(128, false, 48 * 1024), 0);
}

TEST(AttendCompileTest, EveryHeadSizeAndType_Compiles) {
  for (int head_size : {64, 256}) {
    for (bool bf16 : {false, true}) {
      auto code = CompileAttend(Variant(head_size, bf16), "sm_90a", "");
      EXPECT_TRUE(code.ok()) << code.status();
    }
  }
}

TEST(AttendCompileTest, Cache_SecondTime_ComesFromTheFile) {
  const std::string folder = testing::TempDir() + "/attend_cache";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  auto first = CompileAttend(Variant(64, false), "sm_90a", folder);
  ASSERT_TRUE(first.ok()) << first.status();
  auto files = std::filesystem::directory_iterator(folder);
  ASSERT_NE(files, std::filesystem::directory_iterator());
  std::ofstream(files->path(), std::ios::binary) << "cached";
  auto second = CompileAttend(Variant(64, false), "sm_90a", folder);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(std::string(second->begin(), second->end()), "cached");
  auto other = CompileAttend(Variant(64, true), "sm_90a", folder);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(*other, *second);
}

TEST(AttendCompileTest, UnknownArchitecture_SaysSo) {
  auto code = CompileAttend(Variant(64, false), "sm_1", "");
  EXPECT_EQ(code.status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace fq
