// The natural logarithm on vectors of float32. libm's does not vectorise.
#pragma once

#include "cpu/vector.h"

namespace synq::cpu {
namespace {

// log(x) within 1.5 units in the last place, for normal positive x. What it makes of anything else is not said.
inline Vector log(Vector x) {
  // x = 2^exponent (1 + t) with 1 + t between sqrt(1/2) and sqrt(2).
  const Lanes bits = (Lanes)x;
  const Lanes exponent = (bits - 0x3f3504f3) >> 23;
  const Vector t = (Vector)(bits - (exponent << 23)) - 1.0f;
  const Vector n = __builtin_convertvector(exponent, Vector);
  // Minimax polynomial of (log(1 + t) - t + t^2 / 2) / t^3.
  Vector p = Vector{} + 7.0376836292e-2f;
  p = multiply_add(p, t, Vector{} - 1.1514610310e-1f);
  p = multiply_add(p, t, Vector{} + 1.1676998740e-1f);
  p = multiply_add(p, t, Vector{} - 1.2420140846e-1f);
  p = multiply_add(p, t, Vector{} + 1.4249322787e-1f);
  p = multiply_add(p, t, Vector{} - 1.6668057665e-1f);
  p = multiply_add(p, t, Vector{} + 2.0000714765e-1f);
  p = multiply_add(p, t, Vector{} - 2.4999993993e-1f);
  p = multiply_add(p, t, Vector{} + 3.3333331174e-1f);
  const Vector t2 = t * t;
  Vector rest = multiply_add(n, Vector{} - 2.12194440e-4f, p * t2 * t);
  rest = multiply_add(t2, Vector{} - 0.5f, rest);
  return multiply_add(n, Vector{} + 0.693359375f, t + rest);  // few bits: n times this is exact
}

}  // namespace
}  // namespace synq::cpu
