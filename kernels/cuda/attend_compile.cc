#include "kernels/cuda/attend_compile.h"

#include <nvrtc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "openssl/sha.h"

namespace fq {
namespace {

absl::Status NvrtcStatus(nvrtcResult result, const char* what) {
  if (result == NVRTC_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", nvrtcGetErrorString(result)));
}

// A program of the run-time compiler that frees itself.
class Program {
 public:
  ~Program() { nvrtcDestroyProgram(&program_); }

  absl::Status Create(const std::string& source) {
    std::vector<const char*> names, texts;
    for (const EmbeddedFile& file : AttendHeaders()) {
      names.push_back(file.name);
      texts.push_back(file.text);
    }
    return NvrtcStatus(
        nvrtcCreateProgram(&program_, source.c_str(), "attend.cu", static_cast<int>(names.size()),
                           texts.data(), names.data()),
        "nvrtcCreateProgram");
  }

  absl::Status Compile(const std::vector<std::string>& options) {
    std::vector<const char*> list;
    for (const std::string& option : options) list.push_back(option.c_str());
    const nvrtcResult result =
        nvrtcCompileProgram(program_, static_cast<int>(list.size()), list.data());
    if (result == NVRTC_SUCCESS) return absl::OkStatus();
    size_t bytes = 0;
    nvrtcGetProgramLogSize(program_, &bytes);
    std::string log(bytes, ' ');
    nvrtcGetProgramLog(program_, log.data());
    return absl::InternalError(absl::StrCat(nvrtcGetErrorString(result), ": ", log));
  }

  absl::StatusOr<std::vector<char>> Code() const {
    size_t bytes = 0;
    FQ_RETURN_IF_ERROR(NvrtcStatus(nvrtcGetCUBINSize(program_, &bytes), "nvrtcGetCUBINSize"));
    std::vector<char> code(bytes);
    FQ_RETURN_IF_ERROR(NvrtcStatus(nvrtcGetCUBIN(program_, code.data()), "nvrtcGetCUBIN"));
    return code;
  }

 private:
  nvrtcProgram program_ = nullptr;
};

std::vector<std::string> Options(const std::string& architecture) {
  return {absl::StrCat("--gpu-architecture=", architecture), "--std=c++17", "--fmad=false",
          "--device-as-default-execution-space"};
}

// Name of the cached file: everything that decides the code.
std::string CacheName(const std::string& source, const std::vector<std::string>& options) {
  int major = 0, minor = 0;
  nvrtcVersion(&major, &minor);
  std::string all = absl::StrCat("nvrtc ", major, ".", minor, "\n", source);
  for (const std::string& option : options) absl::StrAppend(&all, "\n", option);
  for (const EmbeddedFile& file : AttendHeaders()) absl::StrAppend(&all, "\n", file.text);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(all.data()), all.size(), digest);
  return absl::StrCat(
      "attend-", absl::BytesToHexString({reinterpret_cast<const char*>(digest), sizeof(digest)}),
      ".cubin");
}

std::vector<char> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Other processes see the whole file or none.
void WriteFile(const std::string& path, const std::vector<char>& bytes) {
  const std::string partial = absl::StrCat(path, ".", getpid());
  std::ofstream file(partial, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) std::remove(partial.c_str());
}

}  // namespace

absl::StatusOr<std::vector<char>> CompileAttend(const AttendVariant& variant,
                                                const std::string& architecture,
                                                const std::string& cache_folder) {
  const std::string source = AttendSource(variant);
  const std::vector<std::string> options = Options(architecture);
  const std::string path = absl::StrCat(cache_folder, "/", CacheName(source, options));
  if (!cache_folder.empty()) {
    std::vector<char> cached = ReadFile(path);
    if (!cached.empty()) return cached;
  }
  Program program;
  FQ_RETURN_IF_ERROR(program.Create(source));
  FQ_RETURN_IF_ERROR(program.Compile(options));
  FQ_ASSIGN_OR_RETURN(std::vector<char> code, program.Code());
  if (!cache_folder.empty()) WriteFile(path, code);
  return code;
}

absl::StatusOr<std::string> DeviceArchitecture() {
  int device = 0, major = 0, minor = 0;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return absl::StrCat("sm_", major, minor, major == 9 ? "a" : "");
}

absl::StatusOr<std::unique_ptr<const AttendKernel>> AttendKernel::Build(
    AttendVariant variant, const std::string& cache_folder) {
  int device = 0, limit = 0;
  FQ_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int fit = ReplicatedThatFit(variant.head_size, variant.refined(), limit);
  if (fit == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "attention needs ", AttendSharedBytes(variant.head_size, {1, variant.refined()}),
        " bytes of shared memory in a block; the device has ", limit));
  }
  variant.replicated_tables = std::min(variant.replicated_tables, fit);
  FQ_ASSIGN_OR_RETURN(const std::string architecture, DeviceArchitecture());
  FQ_ASSIGN_OR_RETURN(const std::vector<char> code,
                      CompileAttend(variant, architecture, cache_folder));
  return Load(variant, code);
}

absl::StatusOr<std::unique_ptr<const AttendKernel>> AttendKernel::Load(
    const AttendVariant& variant, const std::vector<char>& code) {
  std::unique_ptr<AttendKernel> loaded(new AttendKernel);
  loaded->head_size_ = variant.head_size;
  loaded->bf16_ = variant.bf16;
  loaded->replicated_tables_ = variant.replicated_tables;
  loaded->shared_bytes_ = AttendSharedBytes(variant.head_size, variant.tables());
  FQ_RETURN_IF_CUDA_ERROR(cudaLibraryLoadData(&loaded->library_, code.data(), nullptr, nullptr, 0,
                                              nullptr, nullptr, 0));
  cudaKernel_t kernel = nullptr;
  FQ_RETURN_IF_CUDA_ERROR(cudaLibraryGetKernel(&kernel, loaded->library_, kAttendKernelName));
  loaded->function_ = reinterpret_cast<const void*>(kernel);
  FQ_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(
      loaded->function_, cudaFuncAttributeMaxDynamicSharedMemorySize, loaded->shared_bytes_));
  return loaded;
}

AttendKernel::~AttendKernel() {
  if (library_ != nullptr) cudaLibraryUnload(library_);
}

}  // namespace fq
