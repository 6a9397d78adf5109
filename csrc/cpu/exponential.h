// 2^x on vectors, and the vector type of the instruction set that a kernel is compiled for.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/elements.h"

namespace synq::cpu {
namespace {

constexpr int kVectorLanes = SYNQ_VECTOR_BYTES / 4;
typedef float FloatVector __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
typedef int32_t IntVector __attribute__((vector_size(SYNQ_VECTOR_BYTES)));

inline FloatVector load_vector(const float* source) {
  FloatVector value;
  memcpy(&value, source, sizeof value);
  return value;
}

inline void store_vector(float* target, FloatVector value) { memcpy(target, &value, sizeof value); }

// 2^x for x <= 0 to a relative 2e-7; below -126, where float32 becomes subnormal, 2^-126. NaN stays NaN.
inline FloatVector exp2_of_negative(FloatVector x) {
  const FloatVector bounded = x < -126.0f ? FloatVector{} - 126.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, from where it becomes an exponent.
  const FloatVector shifted = bounded + 12582912.0f;
  const FloatVector rest = bounded - (shifted - 12582912.0f);
  FloatVector result = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
  result = result * rest + 9.618437357674640e-3f;
  result = result * rest + 5.550332471162809e-2f;
  result = result * rest + 2.402264791363012e-1f;
  result = result * rest + 6.931472028550421e-1f;
  result = result * rest + 1.0f;
  IntVector bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  FloatVector power;
  memcpy(&power, &bits, sizeof power);
  return result * power;
}

}  // namespace
}  // namespace synq::cpu
