#include "server/device/device_window.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

class Window final : public DeviceMapping {
 public:
  Window(std::unique_ptr<MemorySpace> space, std::byte* data, uint64_t bytes,
         std::shared_ptr<const void> room)
      : room_(std::move(room)), space_(std::move(space)), data_(data), bytes_(bytes) {}
  ~Window() override { space_->Unreserve(data_, WindowMemoryBytes(bytes_)); }

  std::byte* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  const std::shared_ptr<const void> room_;  // first: let go last
  const std::unique_ptr<MemorySpace> space_;
  std::byte* const data_;
  const uint64_t bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMapping>> AllocateWindow(Device& device, uint64_t bytes,
                                                              std::shared_ptr<const void> room) {
  const uint64_t taken = WindowMemoryBytes(bytes);
  FQ_ASSIGN_OR_RETURN(std::unique_ptr<MemorySpace> space, device.CreateSpace(taken));
  std::byte* const data = space->Reserve(taken);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no address space for ", taken, " bytes"));
  }
  if (!space->Commit(data, taken)) {
    space->Unreserve(data, taken);
    return absl::ResourceExhaustedError(absl::StrCat("no GPU memory for ", taken, " bytes"));
  }
  return std::make_unique<Window>(std::move(space), data, bytes, std::move(room));
}

}  // namespace fq
