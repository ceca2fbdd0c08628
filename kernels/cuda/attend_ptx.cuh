// The instructions the attention kernels are made of, one function each. Device code, also compiled
// at run time. Where FQ_EMULATED is set, the same functions for the host come from the tests'
// emulation of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef FQ_EMULATED
#include <attend_emulation.h>
#endif

namespace fq {

#define FQ_DEVICE __device__ __forceinline__

// Compile-time integers as values, and a loop over them.
template <int kValue>
struct Int {
  static constexpr int value = kValue;
};
template <int kBegin, int kEnd, typename Body>
FQ_DEVICE void StaticFor(const Body& body) {
  if constexpr (kBegin < kEnd) {
    body(Int<kBegin>{});
    StaticFor<kBegin + 1, kEnd>(body);
  }
}

#ifndef FQ_EMULATED
// Dynamic shared memory of the block.
#define FQ_ATTEND_SHARED(name) extern __shared__ __align__(1024) std::byte name[]

FQ_DEVICE uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

// Sum of the products of the bytes of a and b.
FQ_DEVICE uint32_t DotBytes(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("dp4a.u32.u32 %0, %1, %2, 0;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// 2^x, flushing denormals: about 2 ulp.
FQ_DEVICE float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

FQ_DEVICE float MinusInfinity() { return __int_as_float(0xFF800000); }

// a - b of two FP16 pairs.
FQ_DEVICE uint32_t SubtractPairs(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Two FP32 as a pair of FP16 (or BF16), `low` in the low half.
template <bool kBf16>
FQ_DEVICE uint32_t PackPair(float low, float high) {
  uint32_t result;
  if constexpr (kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

// A pair of FP16 as FP32.
FQ_DEVICE float2 UnpackHalves(uint32_t pair) {
  float2 values;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(values.x), "=f"(values.y)
      : "r"(pair));
  return values;
}

// The 8 x 8 matrix of 16-bit elements that the warp holds, transposed.
FQ_DEVICE uint32_t Transpose(uint32_t rows) {
  uint32_t columns;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// c += A B, A 16 x 16, B 16 x 8.
template <bool kBf16>
FQ_DEVICE void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d = A B + c: the accumulators need no instruction of their own to start.
FQ_DEVICE void MultiplyFrom(float (&d)[4], float4 c, const uint32_t (&a)[4], uint32_t b0,
                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c.x), "f"(c.y), "f"(c.z),
        "f"(c.w));
}

// base + count * kSize in one instruction.
template <int kSize>
FQ_DEVICE const std::byte* Advance(const std::byte* base, uint32_t count) {
  const std::byte* result;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(count), "n"(kSize), "l"(base));
  return result;
}

// Shared memory at an address in the shared window plus a constant.
template <int kOffset>
FQ_DEVICE uint32_t LoadShared(uint32_t address) {
  uint32_t word;
  asm("ld.shared.b32 %0, [%1+%2];" : "=r"(word) : "r"(address), "n"(kOffset));
  return word;
}
template <int kOffset>
FQ_DEVICE uint2 LoadShared2(uint32_t address) {
  uint2 words;
  asm("ld.shared.v2.b32 {%0,%1}, [%2+%3];"
      : "=r"(words.x), "=r"(words.y)
      : "r"(address), "n"(kOffset));
  return words;
}

// Code bytes of a page, 16, 8, 4 or 2 bytes a lane, kept out of L1; nothing is loaded, and the old
// words stay, unless `wanted`. Volatile: the compiler must not sink a prefetch to its use.
template <int kBytes, int kOffset>
FQ_DEVICE void LoadCodes(uint32_t* words, const std::byte* address, bool wanted) {
  const int predicate = wanted;
  if constexpr (kBytes == 16) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %5, 0;\n"
        "@p ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4+%6];}"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "l"(address), "r"(predicate), "n"(kOffset));
  } else if constexpr (kBytes == 8) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %3, 0;\n"
        "@p ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2+%4];}"
        : "+r"(words[0]), "+r"(words[1])
        : "l"(address), "r"(predicate), "n"(kOffset));
  } else if constexpr (kBytes == 4) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %2, 0;\n"
        "@p ld.global.nc.L1::no_allocate.b32 %0, [%1+%3];}"
        : "+r"(words[0])
        : "l"(address), "r"(predicate), "n"(kOffset));
  } else {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %2, 0;\n"
        "@p ld.global.nc.L1::no_allocate.u16 %0, [%1+%3];}"
        : "+r"(words[0])
        : "l"(address), "r"(predicate), "n"(kOffset));
  }
}

// Starts bringing `bytes` bytes (a multiple of 16) at `address` into L2. One lane's work.
FQ_DEVICE void PrefetchToL2(const std::byte* address, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#else
#pragma unroll 1
  for (int at = 0; at < bytes; at += 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address + at));
  }
#endif
}

// A load that stays where it is written.
FQ_DEVICE uint32_t LoadNow(const void* address) {
  uint32_t word;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(word) : "l"(address));
  return word;
}

FQ_DEVICE uint2 LoadNow2(const void* address) {
  uint2 words;
  asm volatile("ld.global.v2.b32 {%0,%1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(address));
  return words;
}

FQ_DEVICE uint4 LoadNow4(const void* address) {
  uint4 words;
  asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(address));
  return words;
}

// Programmatic dependent launch: waits until the kernels before this one have finished; lets the
// next one start. Before sm_90 kernels of a stream follow each other anyway.
FQ_DEVICE void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
FQ_DEVICE void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// An entry of a page table; all lanes read the same one.
FQ_DEVICE uint32_t PageEntry(const uint32_t* table, int page) {
  uint32_t entry;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(entry) : "l"(table + page));
  return entry;
}

// The lane, but not before `loaded` has arrived. Loads that follow share the hardware's counter
// with those before, and a wait for the old ones would wait for the new ones too.
FQ_DEVICE int LaneAfter(int lane, uint32_t loaded, uint32_t zero) {
  uint32_t result;
  asm volatile("lop3.b32 %0, %1, %2, %3, 0xF8;"  // lane | (loaded & zero)
               : "=r"(result)
               : "r"(lane), "r"(loaded), "r"(zero));
  return static_cast<int>(result);
}

// Whether dynamic shared memory starts where the lookups' constants say.
FQ_DEVICE bool SharedStartsAt(const void* shared, uint32_t address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared)) == address;
}
#endif  // FQ_EMULATED

}  // namespace fq
