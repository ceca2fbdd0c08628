// The codec's maths on a GPU against the CPU, bit for bit (DESIGN.md, Reproducibility): every
// function of kernels/codec on a million hostile inputs. Built wherever nvcc is; runs on a machine
// with a GPU (`make test-gpu`).
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/codec/chain_word.h"
#include "kernels/codec/checksum.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/codec/universal.h"

namespace fq {
namespace {

constexpr int kInputs = 1 << 20;
constexpr int kFloats = 24;
constexpr int kIntegers = 12;

// What the functions give for one input. Floats are compared as bits, all NaN alike.
struct Results {
  float floats[kFloats];
  uint64_t integers[kIntegers];
};

// SplitMix64: the n-th word of a fixed stream.
FQ_HD uint64_t Word(uint64_t n) {
  uint64_t z = n * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Any bit pattern, or every other time a value of ordinary size.
FQ_HD float Input(uint64_t n) {
  const uint32_t bits = static_cast<uint32_t>(Word(n) >> 32);
  if (n & 1) return FloatFromBits(bits);
  return static_cast<float>(static_cast<int32_t>(bits)) * (8.0f / 2147483648.0f);
}

FQ_HD void Compute(uint64_t n, Results* out) {
  const float a = Input(3 * n), b = Input(3 * n + 1), c = Input(3 * n + 2);
  const uint32_t words[2] = {static_cast<uint32_t>(Word(n)), static_cast<uint32_t>(Word(n) >> 32)};
  int f = 0, i = 0;
  for (int v = 0; v < 2; ++v) out->floats[f++] = EntryValue(words, 4, v);
  for (int v = 0; v < 4; ++v) out->floats[f++] = EntryValue(words, 2, v);
  for (int v = 0; v < 8; ++v) out->floats[f++] = EntryValue(words, 1, v);
  out->floats[f++] = Class8Value(static_cast<uint8_t>(n));
  out->floats[f++] = Centred(a, b);
  out->floats[f++] = ScaledResidual(a, b, c);
  out->floats[f++] = Refined(a, b, c);
  out->floats[f++] = InverseDeviation(a);
  out->floats[f++] = SinkScale(fabsf(a));
  out->floats[f++] = SinkValue(static_cast<int8_t>(n), a);
  const Butterfly pair = HadamardButterfly(a, b, 0.125f);
  out->floats[f++] = pair.sum;
  out->floats[f++] = pair.difference;
  out->floats[f++] = BFloat16ToFloat(static_cast<uint16_t>(n));
  out->integers[i++] = ChecksumWord(n, Word(n));
  out->integers[i++] = ChecksumFinish(Word(n), n);
  out->integers[i++] = FloatToHalf(a);
  out->integers[i++] = FloatToBFloat16(a);
  out->integers[i++] = Class8Code(a);
  out->integers[i++] =
      static_cast<uint64_t>(SinkCode(Sanitised(a), SinkScale(fabsf(Sanitised(b)))));
  out->integers[i++] = static_cast<uint64_t>(NearestLevel(a));
  out->integers[i++] = UniversalNorm(fabsf(a), 64);
  out->integers[i++] = UniversalNorm(fabsf(b), 96);
  const GroupPosition k = PositionOf(Side::kKey, static_cast<int>(n & 511));
  const GroupPosition v = PositionOf(Side::kValue, static_cast<int>(n & 511));
  out->integers[i++] = static_cast<uint64_t>(k.token * 8 + k.channel);
  out->integers[i++] = static_cast<uint64_t>(v.token * 8 + v.channel);
  out->integers[i++] = FloatBits(HalfToFloat(static_cast<uint16_t>(n)));
}

__global__ void ComputeAll(Results* results) {  // [kInputs]
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n < kInputs) Compute(n, &results[n]);
}

bool Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

bool RunOnDevice(std::vector<Results>* results) {
  Results* device = nullptr;
  const size_t bytes = sizeof(Results) * kInputs;
  if (!Check(cudaMalloc(&device, bytes), "cudaMalloc")) return false;
  ComputeAll<<<kInputs / 256, 256>>>(device);
  const bool good =
      Check(cudaGetLastError(), "launch") &&
      Check(cudaMemcpy(results->data(), device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return Check(cudaFree(device), "cudaFree") && good;
}

bool SameFloat(float a, float b) { return (a != a && b != b) || FloatBits(a) == FloatBits(b); }

// Prints each function that differs, with its first input; how many agree and how many do not.
int Compare(const std::vector<Results>& device) {
  int64_t differ[kFloats + kIntegers] = {};
  for (int n = 0; n < kInputs; ++n) {
    Results host;
    Compute(n, &host);
    for (int f = 0; f < kFloats + kIntegers; ++f) {
      const bool same = f < kFloats ? SameFloat(host.floats[f], device[n].floats[f])
                                    : host.integers[f - kFloats] == device[n].integers[f - kFloats];
      if (!same && differ[f]++ == 0) std::printf("result %d differs first at input %d\n", f, n);
    }
  }
  int failed = 0;
  for (int64_t count : differ) failed += count != 0;
  std::printf("%d passed, %d failed\n", kFloats + kIntegers - failed, failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace fq

int main() {
  std::vector<fq::Results> results(fq::kInputs);
  if (!fq::RunOnDevice(&results)) return EXIT_FAILURE;
  return fq::Compare(results);
}
