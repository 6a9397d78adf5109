// The arithmetic of a grid whose levels are small floats without a sign, for every compiler.
#pragma once

#include <string.h>

#include "affine.h"

namespace synq {
namespace {

// Three exponent bits and `bits` - 3 of mantissa; the subnormal levels and the first octave are a step apart.
struct Minifloat {
  float rounding;  // times the power of two at or below a value, the magic number that rounds it to the mantissa
  float largest;   // level
};

// Rounds to whole numbers, as in round_small; times a power of two, to multiples of that.
constexpr float kMagic = 12582912.0f;

SYNQ_HOST_DEVICE Minifloat minifloat_of(int bits) {
  const int mantissa = bits - 3;
  return {kMagic / static_cast<float>(1 << mantissa), static_cast<float>(((2 << mantissa) - 1) << 6)};
}

SYNQ_HOST_DEVICE Span minifloat_span(int bits) { return {minifloat_of(bits).largest, 0.0f}; }

SYNQ_HOST_DEVICE float steps_of(float x, Affine affine) { return sub(mul(affine.scale, x), affine.zero_point); }

// The level nearest to a number of steps, half to even; NaN stays. Clamping to levels before rounding equals clamping
// after it.
SYNQ_HOST_DEVICE float minifloat_level(float steps, Minifloat grid) {
  const float inside = clamp(steps, 0.0f, grid.largest);
  uint32_t word;
  memcpy(&word, &inside, sizeof word);
  // The exponent alone is the power of two at or below the number.
  word &= 0x7F800000u;
  float power;
  memcpy(&power, &word, sizeof power);
  const float product = mul(power, grid.rounding);
  const float magic = product < kMagic ? kMagic : product;
  return sub(add(inside, magic), magic);
}

SYNQ_HOST_DEVICE float fake_quantize_minifloat(float x, Affine affine, Minifloat grid) {
  return dequantize(minifloat_level(steps_of(x, affine), grid), affine);
}

// Whether a number of steps rounds to a level that the grid does not have; a NaN does not. Half a step below zero
// rounds to it, half a step of the last octave, 64 wide, above the largest level rounds away from that.
SYNQ_HOST_DEVICE bool is_beyond(float steps, Minifloat grid) {
  return (steps < -0.5f) | (steps >= grid.largest + 32.0f);
}

// The clipped straight-through gradient; at NaN it passes.
SYNQ_HOST_DEVICE float minifloat_gradient(float gradient, float x, Affine affine, Minifloat grid) {
  return is_beyond(steps_of(x, affine), grid) ? 0.0f : gradient;
}

}  // namespace
}  // namespace synq
