// Products of small matrices on tensor cores, one warp at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace synq {

// Rounded to TF32: 8 bits of exponent, 10 of mantissa; halves away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
#elif defined(SYNQ_EMULATION)
  return emulation::to_tf32(value);
#else
  return 0;
#endif
}

__device__ __forceinline__ uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

__device__ __forceinline__ float tf32_as_float(uint32_t value) {
  float result;
  memcpy(&result, &value, sizeof result);
  return result;
}

// A value as the sum of two TF32 numbers, to about float32's accuracy. Products drop the bits that TF32 does not have,
// so that `low` need not be rounded.
struct Split {
  uint32_t high;
  uint32_t low;
};

constexpr uint32_t kTf32Bits = 0xffffe000u;

// Of a finite value, by integers: a conversion takes seven instructions where there is none for TF32.
__device__ __forceinline__ Split split_finite(float value) {
  const uint32_t high = (bits_of(value) + 0x1000u) & kTf32Bits;
  return {high, bits_of(value - tf32_as_float(high))};
}

// Of any value, without rounding; one part of infinity and NaN is NaN.
__device__ __forceinline__ Split split(float value) {
  const uint32_t high = bits_of(value) & kTf32Bits;
  return {high, bits_of(value - tf32_as_float(high))};
}

// sums += a * b with a of 16 x 8 and b of 8 x 8. With group = lane / 4 and member = lane % 4 a lane holds
//   a[0..3]: a(group, member), a(group + 8, member), a(group, member + 4), a(group + 8, member + 4)
//   b[0..1]: b(member, group), b(member + 4, group)
//   sums[0..3]: (group, 2 member), (group, 2 member + 1), (group + 8, 2 member), (group + 8, 2 member + 1)
// (PTX ISA, "Matrix fragments for mma.m16n8k8", .tf32).
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(SYNQ_EMULATION)
  emulation::multiply_add_16x8x8(sums, a, b);
#endif
}

}  // namespace synq
