// Vectors of float32 as wide as the instruction set has them.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(SYNQ_VECTOR_BYTES)
#define SYNQ_VECTOR_BYTES 16
#endif

namespace synq::cpu {
namespace {

typedef float Vector __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
typedef int32_t Lanes __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
constexpr int kLanes = SYNQ_VECTOR_BYTES / 4;

inline Vector load_vector(const float* source) {
  Vector value;
  memcpy(&value, source, sizeof value);
  return value;
}

inline void store_vector(float* target, Vector value) { memcpy(target, &value, sizeof value); }

// The difference with zero changes nothing, not even the sign of zero, and so costs nothing.
inline Vector broadcast(float value) { return value - Vector{}; }

// a * b + c, rounded once where the instruction set has that.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__FMA__) && SYNQ_VECTOR_BYTES == 64
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && SYNQ_VECTOR_BYTES == 32
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// The larger of both; b where one of them is NaN.
inline Vector larger(Vector a, Vector b) {
#if defined(__FMA__) && SYNQ_VECTOR_BYTES == 64
  return (Vector)_mm512_maskz_max_ps(-1, (__m512)a, (__m512)b);
#elif defined(__FMA__) && SYNQ_VECTOR_BYTES == 32
  return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// The smaller of both; b where one of them is NaN.
inline Vector smaller(Vector a, Vector b) {
#if defined(__FMA__) && SYNQ_VECTOR_BYTES == 64
  return (Vector)_mm512_maskz_min_ps(-1, (__m512)a, (__m512)b);
#elif defined(__FMA__) && SYNQ_VECTOR_BYTES == 32
  return (Vector)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// Lane i is a's lane where[i] or, from kLanes on, b's lane where[i] - kLanes.
inline Vector shuffle(Vector a, Vector b, Lanes where) {
#if defined(__clang__)
  Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = where[i] < kLanes ? a[where[i]] : b[where[i] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, where);
#endif
}

}  // namespace
}  // namespace synq::cpu
