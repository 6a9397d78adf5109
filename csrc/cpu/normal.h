// The standard normal distribution on vectors of float32.
#pragma once

#include "cpu/exp.h"

namespace synq::cpu {
namespace {

// The part of the distribution below x, within 1.5e-7; exactly 0 or 1 beyond where it differs by 3.4e-8. NaN stays NaN.
inline Vector normal_below(Vector x) {
  constexpr float kEnd = 5.4f;
  const Vector t = multiply_add(x * x, Vector{} + 2.0f / (kEnd * kEnd), Vector{} - 1.0f);
  // Minimax polynomial of (the part between 0 and x) / x, in pairs (Estrin).
  const Vector t2 = t * t;
  const Vector t4 = t2 * t2;
  const Vector p0 = multiply_add(Vector{} - 0.0653280541f, t, Vector{} + 0.130928114f);
  const Vector p1 = multiply_add(Vector{} - 0.039206814f, t, Vector{} + 0.0484995916f);
  const Vector p2 = multiply_add(Vector{} - 0.0257464573f, t, Vector{} + 0.0321165957f);
  const Vector p3 = multiply_add(Vector{} - 0.0139633231f, t, Vector{} + 0.0196451414f);
  const Vector p4 = multiply_add(Vector{} - 0.00671533355f, t, Vector{} + 0.0096512055f);
  const Vector p5 = multiply_add(Vector{} - 0.00118641451f, t, Vector{} + 0.00365890726f);
  const Vector p6 = multiply_add(Vector{} - 0.00102836743f, t, Vector{} + 0.00087494537f);
  const Vector p7 = Vector{} + 0.000392855232f;
  const Vector low = multiply_add(multiply_add(p3, t2, p2), t4, multiply_add(p1, t2, p0));
  const Vector high = multiply_add(multiply_add(p7, t2, p6), t4, multiply_add(p5, t2, p4));
  const Vector below = multiply_add(multiply_add(high, t4 * t4, low), x, Vector{} + 0.5f);
  const Vector bounded = x > kEnd ? Vector{} + 1.0f : below;
  return x < -kEnd ? Vector{} : bounded;
}

// The density at x.
inline Vector normal_density(Vector x) { return exp(x * x * -0.5f) * 0.398942280f; }

}  // namespace
}  // namespace synq::cpu
