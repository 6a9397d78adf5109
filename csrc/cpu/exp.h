// Exponential functions on vectors of float32. libm's does not vectorise.
#pragma once

#include "cpu/vector.h"

namespace synq::cpu {
namespace {

// p times 2^n, where `shifted` is n + 1.5 * 2^23.
inline Vector times_power(Vector p, [[maybe_unused]] Vector shifted, [[maybe_unused]] Vector n) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_scalef_ps(-1, (__m512)p, (__m512)n);
#else
  // 2^n in two factors, because n reaches beyond the exponents of normal numbers.
  const Lanes power = (Lanes)shifted - 0x4b400000;
  const Lanes half = power >> 1;
  return p * (Vector)((half + 127) << 23) * (Vector)((power - half + 127) << 23);
#endif
}

// e^x within 1.1 units in the last place, subnormal results included. NaN gives NaN, -infinity gives 0 and +infinity
// itself.
inline Vector exp(Vector x) {
  // Beyond these the result is 0 or infinity. NaN fails both comparisons and stays.
  x = x < -104.0f ? Vector{} - 104.0f : x;
  x = x > 89.0f ? Vector{} + 89.0f : x;
  // x = n ln 2 + r with |r| <= ln(2) / 2: adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vector shifted = multiply_add(x, Vector{} + 1.44269504088896341f, Vector{} + 12582912.0f);
  const Vector n = shifted - 12582912.0f;
  Vector r = multiply_add(n, Vector{} - 0.693359375f, x);  // few bits: n times this is exact
  r = multiply_add(n, Vector{} + 2.12194440e-4f, r);
  // Minimax polynomial of (e^r - 1 - r) / r^2.
  Vector p = Vector{} + 1.9875691500e-4f;
  p = multiply_add(p, r, Vector{} + 1.3981999507e-3f);
  p = multiply_add(p, r, Vector{} + 8.3334519073e-3f);
  p = multiply_add(p, r, Vector{} + 4.1665795894e-2f);
  p = multiply_add(p, r, Vector{} + 1.6666665459e-1f);
  p = multiply_add(p, r, Vector{} + 5.0000001201e-1f);
  p = multiply_add(p, r * r, r) + 1.0f;
  return times_power(p, shifted, n);
}

// 2^x for x <= 0 to a relative 2e-7, 0 where that is below half of the least number. NaN gives NaN.
inline Vector exp2_to_zero(Vector x) {
  const Vector bounded = larger(Vector{} - 151.0f, x);
  const Vector shifted = bounded + 12582912.0f;
  const Vector n = shifted - 12582912.0f;
  const Vector r = bounded - n;
  Vector p = Vector{} + 1.535336188319500e-4f;
  p = multiply_add(p, r, Vector{} + 1.339887440266574e-3f);
  p = multiply_add(p, r, Vector{} + 9.618437357674640e-3f);
  p = multiply_add(p, r, Vector{} + 5.550332471162809e-2f);
  p = multiply_add(p, r, Vector{} + 2.402264791363012e-1f);
  p = multiply_add(p, r, Vector{} + 6.931472028550421e-1f);
  p = multiply_add(p, r, Vector{} + 1.0f);
  return times_power(p, shifted, n);
}

// Shorter than exp: 2^x for x <= 0 to a relative 2e-7; below -126, where float32 becomes subnormal, 2^-126. NaN stays
// NaN.
inline Vector exp2_of_negative(Vector x) {
  const Vector bounded = x < -126.0f ? Vector{} - 126.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, from where it becomes an exponent.
  const Vector shifted = bounded + 12582912.0f;
  const Vector rest = bounded - (shifted - 12582912.0f);
  Vector result = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
  result = result * rest + 9.618437357674640e-3f;
  result = result * rest + 5.550332471162809e-2f;
  result = result * rest + 2.402264791363012e-1f;
  result = result * rest + 6.931472028550421e-1f;
  result = result * rest + 1.0f;
  Lanes bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  Vector power;
  memcpy(&power, &bits, sizeof power);
  return result * power;
}

}  // namespace
}  // namespace synq::cpu
