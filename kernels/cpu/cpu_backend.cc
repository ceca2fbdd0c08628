#include "kernels/backend.h"
#include "kernels/cpu/attend_head.h"
#include "kernels/cpu/page_coder.h"
#include "kernels/cpu/primitives.h"

namespace fq {
namespace {

// Runs every task in the calling thread; callers split work over threads by splitting the tasks.
class PrimitivesBackend final : public Backend {
 public:
  using Choose = const Primitives& (*)();
  explicit constexpr PrimitivesBackend(Choose primitives) : primitives_(primitives) {}

  const char* name() const override { return primitives_().name; }

  absl::Status Encode(const Context& context, absl::Span<const EncodeTask> tasks) const override {
    for (const EncodeTask& task : tasks) EncodePage(primitives_(), context, task);
    return absl::OkStatus();
  }

  absl::Status Decode(const Context& context, absl::Span<const DecodeTask> tasks) const override {
    for (const DecodeTask& task : tasks) DecodePage(primitives_(), context, task);
    return absl::OkStatus();
  }

  absl::Status Attend(const Context& context, absl::Span<const AttendTask> tasks) const override {
    for (const AttendTask& task : tasks) AttendHead(primitives_(), context, task);
    return absl::OkStatus();
  }

 private:
  Choose primitives_;
};

}  // namespace

const Backend* CpuBackend() {
  static const PrimitivesBackend* const backend = new PrimitivesBackend(SimdPrimitives);
  return backend;
}

const Backend* ScalarBackend() {
  static const PrimitivesBackend* const backend = new PrimitivesBackend(ScalarPrimitives);
  return backend;
}

}  // namespace fq
