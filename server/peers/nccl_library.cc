#include "server/peers/nccl_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

template <typename Function>
absl::Status LookUp(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function != nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("it has no ", name));
}

absl::Status LookUpAll(void* library, NcclLibrary& to) {
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclGetUniqueId", to.GetUniqueId));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclCommInitRankConfig", to.CommInitRankConfig));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclCommGetAsyncError", to.CommGetAsyncError));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclCommAbort", to.CommAbort));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclSend", to.Send));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclRecv", to.Recv));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclGroupStart", to.GroupStart));
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclGroupEnd", to.GroupEnd));
  return LookUp(library, "ncclGetErrorString", to.GetErrorString);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const NcclLibrary>> NcclLibrary::Open(const std::string& name) {
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  // glibc's dlerror is the calling thread's.
  if (library == nullptr) {
    return absl::NotFoundError(dlerror());  // NOLINT(concurrency-mt-unsafe)
  }
  int (*get_version)(int*) = nullptr;
  FQ_RETURN_IF_ERROR(LookUp(library, "ncclGetVersion", get_version));
  int code = 0;
  if (get_version(&code) != kNcclSuccess || code < kNcclOldest) {
    return absl::FailedPreconditionError(
        absl::StrCat("its version is ", code, ", must be ", kNcclOldest, " (2.18.0) or newer"));
  }
  auto opened = std::make_unique<NcclLibrary>();
  opened->version = absl::StrCat(code / 10000, ".", code / 100 % 100, ".", code % 100);
  FQ_RETURN_IF_ERROR(LookUpAll(library, *opened));
  return opened;
}

absl::Status NcclLibrary::Check(int result, const char* function) const {
  if (result == kNcclSuccess || result == kNcclInProgress) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(function, ": ", GetErrorString(result)));
}

}  // namespace fq
