// The arithmetic of a logarithmic grid and of its gradients, for every compiler.
#pragma once

#include <string.h>

#include "affine.h"

namespace synq {
namespace {

// Added to a float's bits, carries into the exponent from the mantissa of the square root of 2 on.
constexpr uint32_t kCarry = 0x4AFB0Cu;

// The bits of the least ratio that rounds to a power of two of the grid; it is no subnormal number.
SYNQ_HOST_DEVICE int32_t least_ratio(int bits) {
  const int32_t last = bits < 7 ? (1 << bits) - 2 : 126;
  const int32_t least = ((127 - last) << 23) - static_cast<int32_t>(kCarry);
  return least < (1 << 23) ? 1 << 23 : least;
}

// The power of two that a ratio rounds to, or zero; NaN stays.
SYNQ_HOST_DEVICE float log_level(float ratio, int32_t least) {
  const float bounded = ratio > 1.0f ? 1.0f : ratio;
  uint32_t word;
  memcpy(&word, &bounded, sizeof word);
  const uint32_t place = (word + kCarry) & 0x7F800000u;
  float power;
  memcpy(&power, &place, sizeof power);
  power = static_cast<int32_t>(word) < least ? 0.0f : power;
  return ratio != ratio ? ratio : power;
}

SYNQ_HOST_DEVICE float fake_quantize_log(float x, float scale, int32_t least) {
  return mul(scale, log_level(divide(x, scale), least));
}

struct LogTerms {
  float of_x;
  float of_scale;
};

SYNQ_HOST_DEVICE LogTerms log_terms(float gradient, float x, float scale, int32_t least) {
  const float ratio = divide(x, scale);
  const float level = log_level(ratio, least);
  const bool above = ratio > 1.0f;
  const bool blocked = above | (level == 0.0f);
  const float slope = divide(mul(scale, level), x);
  return {blocked ? 0.0f : mul(gradient, slope), above ? gradient : 0.0f};
}

}  // namespace
}  // namespace synq
